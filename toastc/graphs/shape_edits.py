"""Shape nodes of which some elements go: what they pick out of what is left of their input.

`before` and `after` are what is left of a node's inputs and outputs. Each element of the inputs has a number of its own,
and the outputs hold the numbers of what they are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..system.errors import CannotShrink, ToastcError

if TYPE_CHECKING:
    from . import Op

Push = Callable[["Op", Sequence["np.ndarray | None"]], list[np.ndarray]]


def comes_out_right(push: Push, op: Op, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> bool:
    """Does the node, as it is, make `after` of `before`?"""
    if not all(array.size for array in (*before, *after)):
        return True  # there is nothing in it
    try:
        made = push(op, before)
    except (ToastcError, RuntimeError, IndexError, ValueError):
        return False
    kept = [m for m, v in zip(made, op.outputs, strict=False) if v is not None]
    return len(kept) == len(after) and all(np.array_equal(a, b) for a, b in zip(kept, after, strict=True))


def check_order(op: Op, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> None:
    """A reshape leaves what is left in its order, or it can not stay."""
    if not np.array_equal(before[0].ravel(), after[0].ravel()):
        raise CannotShrink(f"{op}: what is cut unevenly would change places; give all of it the same ratio, or 0")


def picked(op: Op, free: Sequence[bool], before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> tuple[int, np.ndarray]:
    """The one axis along which a node picks, and the positions, in as many dimensions as stand in its place: mostly one.

    `free`: of the input's axes those whose size is only known at run time.
    """
    if len(before) == len(after) == 1:
        (source,), (taken,) = before, after
        axes = taken.ndim - source.ndim + 1
        for axis in [i for i in range(source.ndim) if axes >= 0 and not free[i]]:
            where = {number: i for i, number in enumerate(line(source, axis, 1).tolist())}
            numbers = line(taken, axis, axes)
            at = np.array([where.get(n, -1) for n in numbers.ravel().tolist()], np.int64).reshape(numbers.shape)
            if (at >= 0).all() and np.array_equal(np.take(source, at, axis), taken):
                return axis, at
    raise CannotShrink(f"{op}: it can not be told how it picks from an axis that is cut")


def line(array: np.ndarray, axis: int, axes: int) -> np.ndarray:
    """What stands along some axes from `axis` on, at the beginning of all others."""
    return array[(0,) * axis + (slice(None),) * axes + (0,) * (array.ndim - axis - axes)]


def step_of(picked: np.ndarray) -> int | None:
    """The distance from each to the next; None if they are not evenly spaced, or no row."""
    numbers = picked.ravel().tolist()
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    even = step and picked.ndim == 1 and numbers == list(range(numbers[0], numbers[0] + step * len(numbers), step))
    return step if even else None
