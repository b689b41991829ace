"""Work beside each other: one matrix, or one batch that runs, keeps few cores busy; they wait for each other all the time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LANES = min(CORES, 4)  # batches that run at one time
AHEAD = 2  # times as many items wait, because those before them may be the slow ones
Item = TypeVar("Item")
Result = TypeVar("Result")


def beside_each_other(work: Callable[[Item], Result], items: Iterable[Item], many: int) -> Iterator[Result]:
    """The results in order; so many at one time, each with its share of the cores for its algebra."""
    if many == 1:
        yield from map(work, items)
        return
    with threadpool_limits(max(1, CORES // many), user_api="blas"), ThreadPoolExecutor(many) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > AHEAD * many:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also when it is stopped, or nobody asks for the rest
            pool.shutdown(cancel_futures=True)
