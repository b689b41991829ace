"""measure-gains: how much of what a coupling loses arrives at the outputs.

Blocks differ by orders of magnitude: what an early block gets wrong is amplified by those behind it, what the last one gets
wrong is hardly read. So the error that a coupling would make is added to its channels, one coupling at a time, and the
outputs are compared with the undisturbed ones. The graph is walked through once: where a coupling is met, a few of
the undisturbed inputs branch off with its error, and from there on run beside the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toastc.calibration.data import as_array, fixed_batch
from toastc.calibration.taps import Tap
from toastc.graphs import Live, Stage, Value
from toastc.system.errors import ToastcError
from toastc.system.vocabulary import Array

from ..state import State
from .simulate import residual
from .streams import stream_behind


@dataclass(frozen=True)
class MeasureGains:
    """Measure how far an error of each coupling reaches, on a few of the calibration inputs."""

    images: int = 16  # undisturbed
    each: int = 4  # of them that branch off for each coupling, at most
    runs: int = 72  # of the whole model that branches may add up to, however many couplings there are
    at: float = 0.5
    always: bool = False  # also where no target asks for them
    temper: float = 1.0  # below 1: drawn towards equal shares, as far as the inputs can not be trusted
    name = "measure-gains"

    def cost(self, state: State) -> float:
        couplings = sum(len(site.couplings) for site in state.sites)
        asked = (state.target is not None or self.always) and not (state.moments and state.moments.gains)
        return self.images + self.branches(couplings) * couplings / 2 if asked else 0.0

    def branches(self, couplings: int) -> int:
        """For each coupling; on the average a branch runs through half of the model."""
        return max(1, min(self.each, 2 * self.runs // max(couplings, 1)))

    def __call__(self, state: State) -> State:
        if state.data is None or not (state.target is not None or self.always) or state.gains:
            return state
        found = {name: self.tap_of(state, name) for name in state.losses}
        taps = {name: tap for name, tap in found.items() if tap is not None}
        names = sorted(taps, key=lambda name: state.graph.position(taps[name].value))
        far = state.workers.add(self.reached(state, {name: taps[name] for name in names}))
        known = np.isfinite(far)
        if not known.all():
            raise ToastcError(f"calibrate: what {names[int(known.argmin())]} loses makes the outputs NaN or infinite")
        lost = np.array([state.losses[name].curve[self.width(state, name)] for name in names])
        gains = far / np.maximum(lost, 1e-30)
        gains = tempered(gains, np.array([state.losses[n].curve[0] for n in names]), self.temper)
        measured = dict(zip(names, gains.tolist(), strict=True))
        if state.moments is not None:
            state.moments.gains = measured
        return replace(state, gains=measured)

    def reached(self, state: State, taps: dict[str, Tap]) -> np.ndarray:
        """For each of these couplings, in the order of the graph: the error of the outputs, relative to their energy."""
        graph, names = state.graph, list(taps)
        each = self.branches(len(names))
        batches = few(state, self.images, each)
        many = max(1, each // len(next(iter(batches[0].values()))))  # batches for each coupling
        own = set(state.workers.own(range(len(names))))
        clean = [graph.begin(batch) for batch in batches]
        moved: list[tuple[int, int, Live]] = []  # the coupling, the batch, and what is alive of it
        walk = stretches(state, list(taps.values()))
        stages = graph.stages([value for stretch in walk for value, _ in stretch])
        for stretch in walk:
            steps = [(value, n, next(stages)) for value, n in stretch]
            moved = [(n, batch, through(live, steps)) for n, batch, live in moved]
            nudges = {n: self.nudge(state, names[n], taps[names[n]]) for _, n, _ in steps if n in own}
            for batch, live in enumerate(clean):
                branches: list[tuple[int, Live]] = []
                for value, n, stage in steps:
                    live, branches = stage(live), [(other, stage(beside)) for other, beside in branches]
                    if n in nudges and batch in {(n * many + i) % len(clean) for i in range(many)}:
                        branches.append((n, live | {value: nudges[n](live[value])}))
                clean[batch] = live
                moved += [(n, batch, beside) for n, beside in branches]
            past = max((n for _, n, _ in steps if n is not None), default=0)
            state.tell(self.name, ((past + 1) / len(names)) ** 2)  # the further, the more run beside
        last = next(stages)
        ends = [outputs(state, last(live)) for live in clean]
        off, whole = (np.zeros((len(names), len(ends[0]))) for _ in range(2))
        for n, batch, live in moved:
            off[n] += [size(a - b) for a, b in zip(ends[batch], outputs(state, last(live)), strict=True)]
            whole[n] += [size(a) for a in ends[batch]]
        return np.asarray((off / (whole + 1e-30)).sum(axis=1))

    def nudge(self, state: State, name: str, tap: Tap) -> Callable[[Array], Array]:
        """Adds to a tensor what the choice of a width would change of it."""
        groups = range(state.coupling(name).groups)
        choice = state.losses[name].choose(self.width(state, name), groups)
        return lambda now: now + residual(tap, now, choice)

    def width(self, state: State, name: str) -> int:
        """The width whose error is measured."""
        return max(1, round(self.at * state.coupling(name).width))

    @staticmethod
    def tap_of(state: State, name: str) -> Tap | None:
        return state.taps.get(f"{name}/q") or state.taps.get(f"{name}/out")


Stretch = list[tuple[Value, int | None]]  # values to stop at, and the tap that is there


def stretches(state: State, taps: Sequence[Tap]) -> list[Stretch]:
    """From stream to stream, up to the last tap."""
    stops: Stretch = [(tap.value, n) for n, tap in enumerate(taps)]
    consumers = {m.operand[0] for s in state.sites for c in s.couplings for m in c.members if m.role == "out"}
    streams = {stream_behind(state.graph, op) for op in consumers} - {None}
    stops += [(stream, None) for stream in streams]
    stops.sort(key=lambda stop: state.graph.position(stop[0]))
    found: list[Stretch] = [[]]
    for stop in stops:
        found[-1].append(stop)
        if stop[1] is None:
            found.append([])
    return [stretch for stretch in found if any(n is not None for _, n in stretch)]


def through(live: Live, steps: Sequence[tuple[Value, int | None, Stage]]) -> Live:
    for _, _, stage in steps:
        live = stage(live)
    return live


def outputs(state: State, live: Live) -> list[np.ndarray]:
    return [as_array(live[value]) for value in sorted(state.graph.outputs, key=state.graph.position)]


def few(state: State, count: int, at_once: int) -> list[dict[str, np.ndarray]]:
    """So many inputs of the data, a few at a time; as many as the model takes where it takes no other number."""
    batches = first(state.data, count)
    if fixed_batch(state.graph.input_sizes()) is not None:
        return batches
    found: list[dict[str, np.ndarray]] = []
    for batch in batches:
        own = min(count, len(next(iter(batch.values()))))
        count -= own
        found += [{k: array[at : min(at + at_once, own)] for k, array in batch.items()} for at in range(0, own, at_once)]
    return found


def tempered(gains: np.ndarray, whole: np.ndarray, power: float) -> np.ndarray:
    """Gains whose effect of losing all of a coupling differs less from the others', on a logarithmic scale."""
    share = np.maximum(gains * whole, 1e-30)
    middle = np.exp(np.log(share).mean())
    return np.asarray(middle * (share / middle) ** power / np.maximum(whole, 1e-30))


def first(data: Any, count: int) -> list[dict[str, np.ndarray]]:
    """As many batches as hold `count` inputs, as the model takes them."""
    found: list[dict[str, np.ndarray]] = []
    have = 0
    for batch in data:
        found.append(batch)
        have += len(next(iter(batch.values())))
        if have >= count:
            break
    return found


def size(array: Array) -> float:
    return float(np.square(as_array(array).astype(np.float64)).sum())
