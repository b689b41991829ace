"""Where the channels that a slice takes stand in what is left of its input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def line(array: np.ndarray, axis: int) -> np.ndarray:
    """What stands along one axis, at the beginning of all others."""
    return array[(0,) * axis + (slice(None),) + (0,) * (array.ndim - axis - 1)]


def positions(source: Sequence[int], taken: Sequence[int], start: float) -> list[int]:
    """In steps of one length if that is possible; of several places the one nearest to `start`, a share of the way.

    Labels may be there more than once: the second half of `cat([x, x])` is not the first.
    """

    def places(label: int) -> list[int]:
        return sorted((i for i, own in enumerate(source) if own == label), key=lambda i: abs(i - start * len(source)))

    for first in places(taken[0]):
        for second in places(taken[1]) if len(taken) > 1 else ():
            found = [first + (second - first) * n for n in range(len(taken))]
            if first != second and all(0 <= i < len(source) and source[i] == x for i, x in zip(found, taken, strict=True)):
                return found
    return [places(label)[0] for label in taken]


def step_of(picked: Sequence[int]) -> int | None:
    """The distance from each to the next; None if they are not evenly spaced."""
    step = picked[1] - picked[0] if len(picked) > 1 else 1
    return step if list(picked) == list(range(picked[0], picked[0] + step * len(picked), step)) else None
