"""Times of a block at sizes between those that were measured."""

from __future__ import annotations

import numpy as np
import pytest

from toastc.plans.latency import Block, Times


def test_times_between_those_measured() -> None:
    """A clock that knows the sizes alone: interpolation gives it back, and nothing narrower is slower."""
    block = Block(8, 8, 32, 32, heads=4, qk=32, vo=24)
    times = Times.of(block, lambda b: b.heads * (2 * b.qk + b.vo) + 7.0)
    for widths in ({}, {"qk": 16}, {"heads": 2, "vo": 8}, {"heads": 3, "qk": 9, "vo": 17}):
        heads, qk, vo = (widths.get(k, full) for k, full in (("heads", 4), ("qk", 32), ("vo", 24)))
        assert np.isclose(times(widths), heads * (2 * qk + vo) + 7)
    noise = iter(np.random.default_rng(0).random(5))
    noisy = Times.of(Block(8, 8, 32, 32, hidden=64), lambda b: next(noise))
    assert (np.diff([noisy({"hidden": w}) for w in range(8, 65)]) >= 0).all()


@pytest.mark.parametrize("late", [8, 36])
def test_one_late_time_leaves_the_others_alone(late: int) -> None:
    """The narrowest that was disturbed must not make everything wider look as slow as itself."""
    times = Times.of(Block(8, 8, 32, 32, hidden=64), lambda b: b.hidden + (500.0 if b.hidden == late else 0.0))
    assert [times({"hidden": w}) for w in (22, 50, 64)] == [22, 50, 64]
    assert times({"hidden": late}) <= 50
