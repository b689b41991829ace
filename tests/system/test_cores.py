"""Work beside each other: in order, never more than asked for, and over at once when it is stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from threadpoolctl import threadpool_info

from toastc.system.cores import AHEAD, beside_each_other


def test_results_come_in_order_and_items_are_taken_as_they_are_needed() -> None:
    running, most, taken = set[int](), 0, list[int]()

    def items() -> Iterator[int]:
        for item in range(40):
            taken.append(item)
            yield item

    def work(item: int) -> int:
        nonlocal most
        running.add(item)
        most = max(most, len(running))
        time.sleep(0.02 if item % 5 == 0 else 0.001)  # the first of five is slow
        running.remove(item)
        return item

    for seen, item in enumerate(beside_each_other(work, items(), 3)):
        assert item == seen and len(taken) <= seen + AHEAD * 3 + 2
    assert most == 3


def test_each_has_its_share_of_the_cores() -> None:
    def blas(item: int) -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = blas(0)
    assert list(beside_each_other(blas, range(3), 1000)) == [[1] * len(before)] * 3
    assert blas(0) == before


def test_what_goes_wrong_is_said_and_what_waits_is_dropped() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 0:
            raise ZeroDivisionError
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(ZeroDivisionError):
        list(beside_each_other(work, range(9), 2))
    assert len(done) <= 2
    done.clear()
    with closing(beside_each_other(lambda item: work(item + 1), range(9), 2)) as results:  # nobody asks for the rest
        next(results)
    assert len(done) <= 4 and threading.active_count() < 20


def test_one_at_a_time_needs_no_threads() -> None:
    assert set(beside_each_other(lambda item: threading.current_thread().name, range(3), 1)) == {threading.current_thread().name}
