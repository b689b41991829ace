"""collect-moments: run the model on the calibration data and keep sums of what its channels do.

Queries and keys are summed head by head; what a consumer takes, all channels together, because its columns can make
up across heads for what is gone. Outer products of wide FFNs would cost more than the model itself, so only as many
tokens are taken, at random, as keep the products within `share` of the model's own arithmetic.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from toastc.calibration.data import Batch, fixed_batch
from toastc.calibration.moments import Moments, Sums
from toastc.calibration.synthetic import Synthetic
from toastc.calibration.taps import Tap
from toastc.system.cores import beside_each_other
from toastc.system.errors import ToastcError
from toastc.system.vocabulary import Array

from ..match.taps import all_taps
from ..state import State
from .inputs import AT_ONCE
from .sides import Side, check_room, sides_of

LEAST_IMAGES = 32
WATCHED = 32 << 20  # bytes of tensors in view at one time, in every lane
WAITING = 128 << 20  # bytes of rows that are summed together: a wide sum costs as much to add as to make
ENOUGH = 6e12  # MACs spent on synthetic images; large models get fewer


@dataclass(frozen=True)
class CollectMoments:
    """Run the calibration data through the model and sum up what its channels do."""

    share: float = 0.2
    synthetic: int = 0  # images to make up where no data is given
    most: int = 0  # inputs to look at; 0: all
    alone: bool = False  # channels that are one group are summed one by one, which tells less and takes no memory
    name = "collect-moments"
    measures = True

    def cost(self, state: State) -> float:
        return (1 + self.share) * self.inputs(state)

    def inputs(self, state: State) -> int:
        """How many will be looked at, where that can be told."""
        if state.data is not None:
            return min(int(state.data.count), self.most or sys.maxsize)
        return int(max(LEAST_IMAGES, min(self.synthetic, ENOUGH / max(state.graph.totals()[0], 1)))) if self.synthetic else 0

    def __call__(self, state: State) -> State:
        taps = all_taps(state.matched, state.sites)
        state = replace(state, taps=taps)
        if state.data is None and self.synthetic:
            state = replace(state, data=Synthetic(state.graph.input_sizes(), self.inputs(state), state.seed))
        if state.moments:
            missing = [key for key in taps if key not in state.moments]
            if missing:
                raise ToastcError(f"moments: nothing is known of {missing[0]}; they were collected from another model")
            return replace(state, gains=state.moments.gains)
        if state.data is None:
            raise ToastcError("this recipe needs calibration data; give data (--calibrate DATA), or take recipe synthetic")
        seen = self.inputs(state) * self.part(state) or math.inf
        check_room(state, self.sides(state), seen, {"--quick": sides_of(state.taps, alone=True)})
        moments, notes = self.collect(state)
        return replace(state, moments=moments, notes=(*state.notes, *notes, *warnings(moments, taps)))

    def collect(self, state: State) -> tuple[Moments, list[str]]:
        workers, kept = state.workers, state.unfinished
        lanes = state.graph.lanes
        probe = state.graph.probe([place.value for tap in state.taps.values() for place in tap.places], lanes=lanes)
        moments, done, notes = self.start_or_resume(state)
        data = state.data.part(workers.rank, workers.count)
        sides = self.sides(state)
        look = Look(state.taps, sides, probe, self.part(state), self.inputs_at_a_time(state), lanes)
        whole = True  # no batch is in the sums in part
        try:
            for number, batch in enumerate(data):
                if number < done:
                    continue
                if self.most and moments.images * workers.count >= self.most:
                    break
                for rows in look.at(batch, (state.seed, number * workers.count + workers.rank)):
                    whole = False
                    note_together(moments, rows, sides)
                moments.images += len(next(iter(batch.values())))
                done, whole = number + 1, True
                if kept is not None:
                    kept.offer(moments, done)
                if data.size:
                    state.tell(self.name, moments.images * workers.count / data.size)
        except KeyboardInterrupt:
            if kept is not None and whole and done:
                kept.save(moments, done)
            raise
        if kept is not None:  # what comes next may take long as well
            kept.save(moments, done)
            notes += [kept.trouble] if kept.trouble else []
        moments = moments.gathered(workers)
        return moments, [*notes, *data.notes]

    def start_or_resume(self, state: State) -> tuple[Moments, int, list[str]]:
        """Sums of nothing; or those of a measurement that was stopped, and how many batches are in them."""
        found, done, word = (None, 0, "") if state.unfinished is None else state.unfinished.found()
        if word:
            state.tell(f"{self.name}: {word}")
        if found is not None:
            return found, done, [word]
        moments = Moments(source=state.data.name)
        for key, side in self.sides(state).items():
            moments.note(key, Sums.none(side.groups, side.width, side.together))
        return moments, 0, [word] if word else []

    def sides(self, state: State) -> dict[str, Side]:
        return sides_of(state.taps, self.alone)

    def part(self, state: State) -> float:
        """The share of the tokens whose outer products may be taken."""
        cost = 0
        for key, side in self.sides(state).items():
            tap = state.taps[key]
            cost += math.prod(state.graph.shape(tap.value)) // tap.index.size * side.products * len(tap.places)
        return min(1.0, self.share * state.graph.totals()[0] * state.graph.batch / max(cost, 1))

    @staticmethod
    def inputs_at_a_time(state: State) -> int:
        """As many as keep what is watched within bounds, whatever the machine, so that the same tokens are drawn; all of a batch
        where the model takes no other size.
        """
        return fixed_batch(state.graph.input_sizes()) or max(1, min(AT_ONCE, WATCHED // state.watched_bytes))


@dataclass(frozen=True)
class Look:
    """What the taps show on a batch, in pieces that fit: of every tap some rows, to be summed before the next piece."""

    taps: Mapping[str, Tap]
    sides: Mapping[str, Side]
    probe: Any
    part: float  # of the tokens
    pieces: int  # inputs at a time
    lanes: int

    def at(self, batch: Batch, seed: Sequence[int]) -> Iterator[dict[str, list[Array]]]:
        count = len(next(iter(batch.values())))

        def seen(start: int) -> list[Array]:
            rng = np.random.default_rng([*seed, start])
            _, arrays = self.probe({name: array[start : start + self.pieces] for name, array in batch.items()})
            return [place.rows(array, self.part, rng) for (_, place), array in zip(places, arrays, strict=True)]

        places = [(key, place) for key, tap in self.taps.items() for place in tap.places]
        rows: dict[str, list[Array]] = {key: [] for key in self.taps}
        starts = range(0, count, self.pieces)
        for start, found in zip(starts, beside_each_other(seen, starts, self.lanes), strict=True):
            for (key, _), own in zip(places, found, strict=True):
                rows[key].append(own)
            if start + self.pieces >= count or sum(piece.nbytes for own in rows.values() for piece in own) > WAITING:
                yield rows


def note_together(moments: Moments, rows: dict[str, list[Array]], sides: Mapping[str, Side]) -> None:
    """One sum for several pieces, which are dropped."""
    for key, pieces in rows.items():
        xp, side = array_namespace(pieces[0]), sides[key]
        with np.errstate(over="ignore", invalid="ignore"):  # which is said below
            sums = Sums.of(xp.reshape(xp.concat(pieces), (-1, side.groups, side.width)), side.together)
        moments.note(key, checked(sums, key))
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
