"""collect-moments: run the model on the calibration data and keep sums of what its channels do.

Queries and keys are summed head by head; what a consumer takes, all channels together, because its columns can make
up across heads for what is gone. Outer products of wide FFNs would cost more than the model itself, so only as many
tokens are taken, at random, as keep the products within `share` of the model's own arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from toastc.calibration.data import fixed_batch
from toastc.calibration.moments import Moments, Sums
from toastc.calibration.synthetic import Synthetic
from toastc.calibration.taps import Tap
from toastc.errors import ToastcError
from toastc.pipeline import State

from .match.taps import taps_of

LEAST_IMAGES = 64
WATCHED = 256 << 20  # bytes of tensors in view at one time
ENOUGH = 2e13  # MACs spent on synthetic images; large models get fewer


@dataclass(frozen=True)
class CollectMoments:
    """Run the calibration data through the model and sum up what its channels do."""

    share: float = 0.2
    synthetic: int = 0  # images to make up where no data is given
    name = "collect-moments"

    def __call__(self, state: State) -> State:
        taps = {f"{s.name}.{key}": tap for s in state.sites for key, tap in taps_of(state.matched, s).items()}
        state = replace(state, taps=taps)
        if state.data is None and self.synthetic:
            count = int(max(LEAST_IMAGES, min(self.synthetic, ENOUGH / max(state.graph.totals()[0], 1))))
            state = replace(state, data=Synthetic(state.graph.input_sizes(), count, state.seed))
        if state.moments:
            missing = [key for key in taps if key not in state.moments]
            if missing:
                raise ToastcError(f"moments: nothing is known of {missing[0]}; they were collected from another model")
            return replace(state, gains=state.moments.gains)
        if state.data is None:
            raise ToastcError("this recipe needs calibration data; give --calibrate DATA, or take recipe synthetic")
        moments, notes = self.collect(state)
        return replace(state, moments=moments, notes=(*state.notes, *notes, *warnings(moments, taps)))

    def collect(self, state: State) -> tuple[Moments, list[str]]:
        keys, taps, workers = list(state.taps), state.taps, state.workers
        probe = state.graph.probe([taps[k].value for k in keys])
        moments = Moments(source=state.data.name)
        for key in keys:
            groups, width, copies = taps[key].index.shape
            moments.note(key, Sums.none(groups, width * copies, key.endswith("/out")))
        data = state.data.part(workers.rank, workers.count)
        part, pieces = self.part(state), self.inputs_at_a_time(state)
        for number, batch in enumerate(data):
            if number * workers.count + workers.rank < state.held_out:
                continue
            rng = np.random.default_rng([state.seed, number * workers.count + workers.rank])
            count = len(next(iter(batch.values())))
            rows: dict[str, list[Any]] = {key: [] for key in keys}
            for start in range(0, count, pieces):
                _, watched = probe({name: array[start : start + pieces] for name, array in batch.items()})
                for key, array in zip(keys, watched, strict=True):
                    rows[key].append(taps[key].rows(array, part, rng))
                if start + pieces >= count or sum(piece.nbytes for own in rows.values() for piece in own) > WATCHED:
                    note_together(moments, rows)
            moments.images += count
            if data.size:
                state.tell(self.name, moments.images * workers.count / data.size)
        moments = moments.gathered(workers)
        if state.held_out and not moments.images:
            raise ToastcError(f"search: {state.held_out} batches of the data are held back to judge by, and there are no more")
        return moments, data.notes

    def part(self, state: State) -> float:
        """The share of the tokens whose outer products may be taken."""
        cost = 0
        for key, tap in state.taps.items():
            groups, width, copies = tap.index.shape
            rows = math.prod(state.graph.shape(tap.value)) // tap.index.size
            cost += rows * groups * (width * copies) ** 2 * (groups if key.endswith("/out") else 1)
        return min(1.0, self.share * state.graph.totals()[0] * state.graph.batch / max(cost, 1))

    @staticmethod
    def inputs_at_a_time(state: State) -> int:
        """As many as keep what is watched within bounds; all of a batch where the model takes no other size."""
        return fixed_batch(state.graph.input_sizes()) or max(1, WATCHED // state.watched_bytes)


def note_together(moments: Moments, rows: dict[str, list[Any]]) -> None:
    """One sum for several pieces, which are dropped: adding wide sums costs as much as making them."""
    for key, pieces in rows.items():
        moments.note(key, checked(Sums.of(array_namespace(pieces[0]).concat(pieces), key.endswith("/out")), key))
        pieces.clear()


def checked(sums: Sums, key: str) -> Sums:
    if not np.isfinite(sums.energy):
        raise ToastcError(f"calibrate: {key.rpartition('/')[0]} takes NaN or infinite values on this data")
    return sums


def warnings(moments: Moments, taps: dict[str, Tap]) -> list[str]:
    """Is the sample large enough for the widest coupling?"""
    few = [k for k, tap in taps.items() if k.endswith("/out") and moments[k].count < 4 * tap.index.size]
    if not few:
        return []
    worst = max(few, key=lambda k: taps[k].index.size)
    have, need = moments[worst].count, 4 * taps[worst].index.size
    return [f"{have:.0f} tokens are few for {worst.rpartition('/')[0]} ({need} would be enough); shrinkage is higher for it"]
