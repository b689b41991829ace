"""measure-gains: how much of what a coupling loses arrives at the outputs.

Blocks differ by orders of magnitude: what an early block gets wrong is amplified by those behind it, what the last one gets
wrong is hardly read. So the error that a coupling would make is added to its channels, one coupling at a time, and
the outputs are compared with the undisturbed ones. One session serves all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toastc.calibration.data import as_array, fixed_batch
from toastc.calibration.taps import Tap
from toastc.system.errors import ToastcError
from toastc.system.vocabulary import Array

from ..state import State
from .simulate import residual

HELD = 1 << 30  # bytes of tensors of the undisturbed model that are kept at one time


@dataclass(frozen=True)
class MeasureGains:
    """Measure how far an error of each coupling reaches, on a few of the calibration inputs."""

    images: int = 32
    at: float = 0.5
    always: bool = False  # also where no target asks for them
    temper: float = 1.0  # below 1: drawn towards equal shares, as far as the inputs can not be trusted
    name = "measure-gains"

    def __call__(self, state: State) -> State:
        if state.data is None or not (state.target is not None or self.always) or state.gains:
            return state
        batches = few(state, self.images)
        names = [n for n in state.losses if self.tap_of(state, n) is not None]
        taps = [self.tap_of(state, n) for n in names]
        values = list(dict.fromkeys(t.value for t in taps if t is not None))
        probe = state.graph.probe(values, nudge=values)
        runs = [(batch, *probe(batch)) for batch in batches]
        seen = [dict(zip(values, map(as_array, watched), strict=True)) for _, _, watched in runs]
        scale = [sum(size(run[1][i]) for run in runs) + 1e-30 for i in range(len(runs[0][1]))]
        gains = np.zeros(len(names))
        for n in state.workers.own(range(len(names))):
            name, tap = names[n], taps[n]
            assert tap is not None
            state.tell(self.name, (n + 1) / len(names))
            coupling, loss = state.coupling(name), state.losses[name]
            width = max(1, round(self.at * coupling.width))
            choice, far = loss.choose(width, range(coupling.groups)), 0.0
            for (batch, clean, _), values_seen in zip(runs, seen, strict=True):
                outputs, _ = probe(batch, {tap.value: residual(tap, values_seen[tap.value], choice)})
                far += sum(size(as_array(a) - as_array(b)) / s for a, b, s in zip(clean, outputs, scale, strict=True))
            gains[n] = far / max(float(loss.curve[width]), 1e-30)
        known = np.isfinite(gains)
        if not known.all():
            raise ToastcError(f"calibrate: what {names[int(known.argmin())]} loses makes the outputs NaN or infinite")
        gains = tempered(state.workers.add(gains), np.array([state.losses[n].curve[0] for n in names]), self.temper)
        found = dict(zip(names, gains.tolist(), strict=True))
        if state.moments is not None:
            state.moments.gains = found
        return replace(state, gains=found)

    @staticmethod
    def tap_of(state: State, name: str) -> Tap | None:
        return state.taps.get(f"{name}/q") or state.taps.get(f"{name}/out")


def few(state: State, count: int) -> list[dict[str, np.ndarray]]:
    """So many inputs, or fewer where the tensors of all taps would not fit."""
    count = max(1, min(count, HELD // state.watched_bytes))
    batches = first(state.data, count)
    if fixed_batch(state.graph.input_sizes()) is not None:
        return batches
    over = sum(len(next(iter(b.values()))) for b in batches) - count
    if over > 0:
        batches[-1] = {name: array[: len(array) - over] for name, array in batches[-1].items()}
    return batches


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
