"""measure-gains: how much of what a coupling loses arrives at the outputs.

Blocks differ by orders of magnitude: what an early block gets wrong is amplified by those behind it, what the last one gets
wrong is hardly read. So the error that a coupling would make is added to its channels, one coupling at a time, and the
outputs are compared with the undisturbed ones. Where the undisturbed inputs come to a coupling, a copy of them branches off
with its error and runs to the end: what stands before it is not computed again.

Inputs differ as much as blocks do, whatever disturbs them. So every coupling sees the same ones, and of what they
say the fourth roots are averaged, among which no single one outweighs the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toastc.calibration.taps import Tap
from toastc.graphs import Live, Stage
from toastc.system.arrays import as_array
from toastc.system.cores import beside_each_other
from toastc.system.errors import ToastcError
from toastc.system.vocabulary import Array

from ..state import State
from .inputs import AT_ONCE, few
from .simulate import residual

ROOT = 0.25  # the power whose mean is taken over inputs


@dataclass(frozen=True)
class MeasureGains:
    """Measure how far an error of each coupling reaches, on a few of the calibration inputs."""

    least: int = 2  # inputs
    most: int = 16
    share: float = 1.0  # of the runs that all inputs take; between the two it tells how many are used
    at: float = 0.5
    always: bool = False  # also where no target asks for them
    temper: float = 1.0  # below 1: drawn towards equal shares, as far as the inputs can not be trusted
    name = "measure-gains"

    def cost(self, state: State) -> float:
        couplings = sum(len(site.couplings) for site in state.sites)
        asked = (state.target is not None or self.always) and not (state.moments and state.moments.gains)
        known = 0 if state.data is None else state.data.count
        return self.inputs(known, couplings) * (1 + couplings / 2) if asked else 0.0

    def inputs(self, known: int, couplings: int) -> int:
        """How many; on the average a branch runs through half of the model."""
        return int(max(self.least, min(self.most, 2 * self.share * known / max(couplings, 1))))

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
        batches = few(state, self.inputs(state.moments.images if state.moments else 0, len(names)), AT_ONCE)
        own = set(state.workers.own(range(len(names))))
        stages = list(graph.stages([taps[name].value for name in names], graph.lanes))
        begun = [graph.begin(batch) for batch in batches]
        ends = list(beside_each_other(lambda live: outputs(state, walked(live, stages)), begun, graph.lanes))
        counts = [len(next(iter(batch.values()))) for batch in batches]

        def branches() -> Iterator[tuple[int, list[Live]]]:
            clean = begun
            for n in range(len(names)):
                clean = [stages[n](live) for live in clean]
                if n in own:
                    yield n, clean

        def far(branch: tuple[int, list[Live]]) -> tuple[int, float]:
            n, clean = branch
            value, nudge = taps[names[n]].value, self.nudge(state, names[n], taps[names[n]])
            moved = (outputs(state, walked(live | {value: nudge(live[value])}, stages[n + 1 :])) for live in clean)
            seen = np.concatenate([apart(*each) for each in zip(moved, ends, counts, strict=True)])
            return n, float((seen**ROOT).mean() ** (1 / ROOT))

        found = np.zeros(len(names))
        for n, reached in beside_each_other(far, branches(), graph.lanes):
            found[n] = reached
            state.tell(self.name, 1 - ((len(names) - n - 1) / len(names)) ** 2)  # a branch runs to the end
        return found

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


def walked(live: Live, stages: Sequence[Stage]) -> Live:
    for stage in stages:
        live = stage(live)
    return live


def outputs(state: State, live: Live) -> list[np.ndarray]:
    return [as_array(live[value]) for value in sorted(state.graph.outputs, key=state.graph.position)]


def tempered(gains: np.ndarray, whole: np.ndarray, power: float) -> np.ndarray:
    """Gains whose effect of losing all of a coupling differs less from the others', on a logarithmic scale."""
    share = np.maximum(gains * whole, 1e-30)
    middle = np.exp(np.log(share).mean())
    return np.asarray(middle * (share / middle) ** power / np.maximum(whole, 1e-30))


def apart(here: Sequence[np.ndarray], there: Sequence[np.ndarray], count: int) -> np.ndarray:
    """[inputs]: the error between outputs, each relative to the energy of its own."""
    off = [one - other for one, other in zip(here, there, strict=True)]
    return np.asarray((energies(off, count) / (energies(there, count) + 1e-30)).sum(axis=0))


def energies(arrays: Sequence[np.ndarray], count: int) -> np.ndarray:
    """[outputs, inputs]: the squares of each, summed; of all inputs together where an output does not tell them apart."""
    rows = [a.reshape(count if len(a) % count == 0 else 1, -1) if a.ndim else a.reshape(1, 1) for a in arrays]
    sums = [np.square(row.astype(np.float64)).sum(axis=1) for row in rows]
    return np.stack([np.broadcast_to(own, count) for own in sums])


def size(array: Array) -> float:
    return float(np.square(as_array(array).astype(np.float64)).sum())
