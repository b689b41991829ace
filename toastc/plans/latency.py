"""Milliseconds of attentions and FFNs at every width, interpolated between a few that were timed on this machine.

A block is timed as the compiler would write it, alone, on the runtime and the device that will run it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Block:
    """The sizes of an attention (`heads` > 0) or an FFN. `rows`: its tokens of all windows of one batch."""

    rows: int
    tokens: int  # that look at each other
    dim: int
    out: int
    heads: int = 0
    qk: int = 0
    vo: int = 0
    hidden: int = 0
    gated: bool = False
    fused: bool = False  # attention is one node of the runtime's
    int8: bool = False


Stopwatch = Callable[[Block], float]


@dataclass(frozen=True)
class Times:
    """What a block takes at the sizes of a grid: (heads, qk, vo), or (hidden,)."""

    block: Block
    grid: tuple[np.ndarray, ...]
    measured: np.ndarray

    @staticmethod
    def of(block: Block, stopwatch: Stopwatch) -> Times:
        if block.heads:
            grid = tuple(points(size, 3) for size in (block.heads, block.qk, block.vo))
            blocks = [replace(block, heads=h, qk=q, vo=v) for h, q, v in itertools.product(*(g.tolist() for g in grid))]
        else:
            grid = (points(block.hidden, 5),)
            blocks = [replace(block, hidden=size) for size in grid[0].tolist()]
        times = np.array([stopwatch(b) for b in blocks]).reshape([len(g) for g in grid])
        for axis in range(times.ndim):  # what disturbs a clock only makes it late: narrower is no slower than what is wider
            times = np.flip(np.minimum.accumulate(np.flip(times, axis), axis=axis), axis)
        return Times(block, grid, times)

    def __call__(self, widths: Mapping[str, int]) -> float:
        """Milliseconds at these widths; couplings that are not named stay whole."""
        block = self.block
        full = {"heads": block.heads, "qk": block.qk, "vo": block.vo} if block.heads else {"hidden": block.hidden}
        times = self.measured
        for axis, (name, size) in reversed(list(zip(self.grid, full.items(), strict=True))):
            value = widths.get(name, size)
            times = np.array([np.interp(value, axis, row) for row in times.reshape(-1, len(axis))]).reshape(times.shape[:-1])
        return float(times)


def points(size: int, count: int) -> np.ndarray:
    least = min(8, size) if size > 16 else 1
    return np.unique(np.round(np.linspace(least, size, count)).astype(int))
