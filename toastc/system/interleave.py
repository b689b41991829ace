"""Time things beside each other, taking turns, so that the noise of a machine falls on all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

PAUSE = 0.02  # seconds between timed runs: each finds an idle machine
WARMUP = 3
FEWEST = 5


def interleave(runs: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Milliseconds of every run of each, for so many seconds in all, and a few runs at least."""
    for run in runs:
        for _ in range(WARMUP):
            run()
    times: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < FEWEST:
        for run, own in zip(runs, times, strict=True):
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            own.append((time.perf_counter() - start) * 1e3)
    return times
