"""search-widths: measure the whole pruned model, and move the budget to where it is missed most.

The knapsack adds up losses as if couplings did not know of each other. Here the model is run as pruned: every coupling
is narrowed by one more step, on its own, and the rise of the output error is measured; that corrects its gain, the
knapsack is solved anew, and the new widths stay if the error fell. Until it does not, or the time is over.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toastc.calibration.taps import Tap
from toastc.graphs import Live, Stage, Value
from toastc.plans.plan import Choice
from toastc.system.arrays import as_array

from ..analyse.gains import MeasureGains, size
from ..analyse.inputs import first
from ..analyse.simulate import residual
from ..state import State, taken


@dataclass(frozen=True)
class SearchWidths:
    """Refine the widths by the measured output error of the pruned model, for at most so many minutes."""

    minutes: float = taken(5.0, "search")
    images: int = 128
    step: int = 8  # how much narrower a coupling is tried, in thirty-seconds of its width
    name = "search-widths"

    @property
    def apart(self) -> int:
        """Inputs that are not measured, so that the pruned model can be judged by them."""
        return self.images if self.minutes else 0

    def __call__(self, state: State) -> State:
        if not self.minutes or state.allocate is None or state.data is None:
            return state
        allocate = state.allocate
        end, begun = time.monotonic() + 60 * self.minutes, time.monotonic()
        model = Simulation(state, first(state.apart or state.data, self.images))
        best, rounds = model.error(state), 0
        before = best
        while time.monotonic() < end:
            gains = dict(state.gains)
            names = [n for n in state.losses if n in model.taps]
            for name in names:
                if time.monotonic() > end:
                    break
                state.tell(self.name, min(1.0, (time.monotonic() - begun) / (60 * self.minutes)))
                gains[name] = self.corrected(state, model, name, best)
            for power in (1.0, 0.5, 0.25):  # all the way, or part of it
                part = {n: state.gains[n] ** (1 - power) * gains[n] ** power for n in state.gains}
                tried = allocate(replace(state, gains=part))
                error = model.error(tried)
                if error < best:
                    break
            else:
                break
            state, best, rounds = tried, error, rounds + 1
        inputs = sum(len(run[0]) for run in model.clean)
        kind = "held-out" if state.apart is not None and not state.given_moments else "calibration"
        change = f"took the output error from {before:.4f} to {best:.4f} of the outputs' energy"
        note = f"search: {rounds} rounds on {inputs} {kind} inputs {change}"
        return replace(state, notes=(*state.notes, note))

    def corrected(self, state: State, model: Simulation, name: str, now: float) -> float:
        """The gain that the rise of the error shows, half way to it, so that one round does not swing too far."""
        whole = state.coupling(name).width
        width = state.widths.get(name, whole)
        narrower = max(1, width - max(1, whole * self.step // 32))
        curve = state.losses[name].curve
        rise = model.error(replace(state, widths={**state.widths, name: narrower})) - now
        gain, expected = state.gains.get(name, 1.0), float(curve[narrower] - curve[width])
        if expected <= 0:
            return gain
        return float(np.sqrt(gain * max(rise / expected, 0.05 * gain)))


class Simulation:
    """The dense graph run as if it were pruned: stage by stage, each coupling's channels replaced by what is left of them."""

    def __init__(self, state: State, batches: Sequence[dict[str, np.ndarray]]) -> None:
        graph = state.graph
        found = {n: MeasureGains.tap_of(state, n) for n in state.losses}
        self.taps: dict[str, Tap] = {n: t for n, t in found.items() if t is not None}
        order = sorted(self.taps, key=lambda n: graph.position(self.taps[n].value))
        self.made: dict[tuple[str, int, tuple[int, ...]], tuple[Choice, tuple[int, ...]]] = {}
        self.order, self.outputs = order, sorted(graph.outputs, key=graph.position)
        self.stages: list[Stage] = list(graph.stages([self.taps[n].value for n in order]))
        self.feeds = [graph.begin(batch) for batch in batches]
        self.clean = [self.run(feed, {}) for feed in self.feeds]
        self.scale = [sum(size(run[i]) for run in self.clean) + 1e-30 for i in range(len(self.outputs))]

    def run(self, feed: Live, choices: Mapping[str, tuple[Choice, Sequence[int]]]) -> list[np.ndarray]:
        live = dict(feed)
        for name, stage in zip(self.order, self.stages, strict=False):
            live = stage(live)
            if name in choices:
                value: Value = self.taps[name].value
                live[value] = live[value] + residual(self.taps[name], live[value], *choices[name])
        live = self.stages[-1](live)
        return [as_array(live[v]) for v in self.outputs]

    def error(self, state: State) -> float:
        """Of all outputs, relative to their energy, under these widths."""
        choices = {name: self.choice(state, name) for name in self.order if narrowed(state, name)}
        error = 0.0
        for feed, clean in zip(self.feeds, self.clean, strict=True):
            error += sum((size(a - b) / s for a, b, s in zip(clean, self.run(feed, choices), self.scale, strict=True)), 0.0)
        return error

    def choice(self, state: State, name: str) -> tuple[Choice, tuple[int, ...]]:
        """What would be done to a coupling; solving for it takes time, so that it is remembered."""
        site, coupling = name.rpartition(".")[0], state.coupling(name)
        groups = tuple(range(coupling.groups))
        heads = state.widths.get(f"{site}.heads")
        if heads is not None and coupling.name in ("qk", "vo"):
            groups = tuple(sorted(state.losses[f"{site}.vo"].order[-heads:].tolist()))
        key = name, state.widths.get(name, coupling.width), groups
        if key not in self.made:
            self.made[key] = state.losses[name].choose(key[1], groups), groups
        return self.made[key]


def narrowed(state: State, name: str) -> bool:
    return name in state.widths or (name.endswith(".vo") and f"{name[:-3]}.heads" in state.widths)
