"""What a consumer is fitted to: the channels that stay, beside what the stream lacks without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from toastc.calibration.moments import Sums, to_float64
from toastc.calibration.workers import Workers
from toastc.graphs import Live
from toastc.plans.plan import Select
from toastc.system.arrays import as_array
from toastc.system.vocabulary import Array

from ..analyse.algebra import like
from ..analyse.streams import flat
from .jobs import Job

TOGETHER = 2  # vectors for each channel, summed at one time: sums of wide couplings cost as much to add as to make


@dataclass(frozen=True, eq=False)
class Evidence:
    sums: Sums  # of the channels
    cross: Array  # [out, channels], of their products with what is missing, both less their means
    missing: np.ndarray  # [out]: the sum of it

    @staticmethod
    def of(rows: Array, lacks: Array) -> Evidence:
        xp, sums = array_namespace(rows), Sums.of(rows[:, None, :], True)
        missing = to_float64(xp.sum(lacks, axis=0, dtype=xp.float64))
        cross = (lacks - like(missing / sums.count, lacks)).T @ (rows - like(sums.mean.ravel(), rows))
        return Evidence(sums, cross, missing)

    def __add__(self, other: Evidence) -> Evidence:
        """In place; `self` is not to be used again."""
        mine, theirs = self.sums, other.sums
        share = mine.count * theirs.count / (mine.count + theirs.count)
        between = other.missing / theirs.count - self.missing / mine.count
        drift = share * np.outer(between, (theirs.mean - mine.mean).ravel())
        return Evidence(mine + theirs, self.cross + other.cross + like(drift, self.cross), self.missing + other.missing)

    def gathered(self, workers: Workers) -> Evidence:
        """That of all processes; `self` is not to be used again."""
        if workers.count == 1:
            return self
        count, own, mean, missing = self.sums.count, self.missing / self.sums.count, self.sums.mean, workers.add(self.missing)
        sums = self.sums.gathered(workers)
        drift = count * np.outer(own - missing / sums.count, (mean - sums.mean).ravel())
        return Evidence(sums, workers.add(as_array(self.cross + like(drift, self.cross))), missing)


def evidence(job: Job, dense: Sequence[Live], pruned: Sequence[Live]) -> Evidence:
    """Of all batches, where they have come to the stream."""
    found: Evidence | None = None
    waiting: list[tuple[Array, Array]] = []
    for n, (whole, cut) in enumerate(zip(dense, pruned, strict=True)):
        rows, lacks = job.kept[n], flat(whole[job.stream]) - flat(cut[job.stream])
        if n in job.placed:
            assert not isinstance(job.choice, Select) and job.choice.consumer is not None
            lacks = lacks + job.there(rows, job.choice.consumer)
        waiting.append((rows, lacks))
        if n + 1 == len(dense) or sum(len(own) for own, _ in waiting) >= TOGETHER * rows.shape[1]:
            more = Evidence.of(*(array_namespace(rows).concat(each) for each in zip(*waiting, strict=True)))
            found = more if found is None else found + more
            waiting.clear()
    assert found is not None
    return found
