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
    near = sorted((i for i, label in enumerate(source) if label == taken[0]), key=lambda i: abs(i - start * len(source)))
    for first in near:
        for second in (i for i, label in enumerate(source) if len(taken) > 1 and label == taken[1] and i != first):
            found = range(first, first + (second - first) * len(taken), second - first)
            if all(0 <= i < len(source) and source[i] == label for i, label in zip(found, taken, strict=True)):
                return list(found)
    by_label: dict[int, int] = {}
    for i, label in enumerate(source):
        held = by_label.get(label)
        if held is None or abs(i - start * len(source)) < abs(held - start * len(source)):
            by_label[label] = i
    return [by_label[label] for label in taken]


def step_of(picked: Sequence[int]) -> int | None:
    """The distance from each to the next; None if they are not evenly spaced."""
    step = picked[1] - picked[0] if len(picked) > 1 else 1
    return step if list(picked) == list(range(picked[0], picked[0] + step * len(picked), step)) else None
