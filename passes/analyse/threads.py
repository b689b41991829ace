"""Couplings beside each other: algebra of one keeps few cores busy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

from toastc.plans.sites import Coupling

ROOM = 1 << 29  # bytes of matrices that are worked on at one time
MATRICES = 5  # as large as a coupling's covariance, in float32
Item = TypeVar("Item")
Result = TypeVar("Result")


def beside_each_other(work: Callable[[Item], Result], items: Sequence[Item], couplings: Sequence[Coupling]) -> Iterator[Result]:
    """The results in order; as many at one time as there are cores, and room for such couplings."""
    widest = max((c.groups * c.width for c in couplings), default=1)
    cores = os.cpu_count() or 1
    at_once = max(1, min(cores, ROOM // (4 * MATRICES * widest**2)))
    with threadpool_limits(max(1, cores // at_once), user_api="blas"), ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(work, items)
