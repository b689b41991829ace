"""Work beside each other: the algebra of one coupling, or one batch that runs, keeps few cores busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

from toastc.system.cores import CORES

ROOM = 1 << 29  # bytes of matrices that are worked on at one time
MATRICES = 5  # as large as what is known of a coupling, in float32
AHEAD = 2  # times as many wait, because those before them may be the slow ones
Item = TypeVar("Item")
Result = TypeVar("Result")


def at_once(largest: int) -> int:
    """How many couplings, of which so many numbers are known."""
    return max(1, min(CORES, ROOM // (4 * MATRICES * max(largest, 1))))


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
