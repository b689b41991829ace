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
CORES = os.cpu_count() or 1
Item = TypeVar("Item")
Result = TypeVar("Result")


def at_once(widest: int) -> int:
    """How many couplings of so many channels."""
    return max(1, min(CORES, ROOM // (4 * MATRICES * widest**2)))


def beside_each_other(work: Callable[[Item], Result], items: Sequence[Item], couplings: Sequence[Coupling]) -> Iterator[Result]:
    """The results in order; as many at one time as there are cores, and room for such couplings."""
    many = at_once(max((c.groups * c.width for c in couplings), default=1))
    with threadpool_limits(max(1, CORES // many), user_api="blas"), ThreadPoolExecutor(many) as pool:
        yield from pool.map(work, items)
