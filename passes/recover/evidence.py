"""What a consumer is fitted to: the channels that stay, beside what the stream lacks without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from array_api_compat import array_namespace

from toastc.calibration.moments import Sums, to_float64
from toastc.calibration.workers import Workers
from toastc.graphs import Live
from toastc.plans.plan import Select
from toastc.system.arrays import as_array
from toastc.system.cores import beside_each_other
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


def evidence(job: Job, dense: Sequence[Live], pruned: Sequence[Live], lanes: int) -> Evidence:
    """Of all batches, where they have come to the stream."""

    def of(batches: Sequence[int]) -> Evidence:
        xp = array_namespace(job.kept[batches[0]])
        return Evidence.of(xp.concat([job.kept[n] for n in batches]), xp.concat([lacking(n) for n in batches]))

    def lacking(n: int) -> Array:
        lacks = flat(dense[n][job.stream], job.axis) - flat(pruned[n][job.stream], job.axis)
        if n not in job.placed:
            return lacks
        assert not isinstance(job.choice, Select) and job.choice.consumer is not None
        return lacks + job.there(job.kept[n], job.choice.consumer)

    return reduce(add, beside_each_other(of, together(job), lanes))


def together(job: Job) -> Iterator[list[int]]:
    """Batches that are summed at one time."""
    own: list[int] = []
    for n, rows in sorted(job.kept.items()):
        own.append(n)
        if sum(len(job.kept[n]) for n in own) >= TOGETHER * rows.shape[1]:
            yield own
            own = []
    if own:
        yield own
