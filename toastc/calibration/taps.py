"""Where the channels of a coupling can be watched while the model runs."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace, device

from ..system.vocabulary import Array


@dataclass(frozen=True, eq=False)
class Tap:
    """A tensor, the axes its channels stand on, and each channel's positions on them, flattened.

    Most channels have one position; a rotary pair has two, a key that several queries share one for each of them.
    `tokens` is the axis of the tokens that one softmax weighs against each other: keys matter only by how they
    differ along it.
    """

    value: Hashable
    axes: tuple[int, ...]
    index: np.ndarray  # [groups, width, copies]
    tokens: int | None = None
    plus: np.ndarray | None = None  # what the node adds before it uses them, by position
    more: tuple[Tap, ...] = ()  # where the same channels stand when their weights are used again

    @property
    def copies(self) -> int:
        return int(self.index.shape[2])

    @property
    def places(self) -> tuple[Tap, ...]:
        return self, *self.more

    def in_order(self, size: int) -> bool:
        """Are these all positions there are, as they stand?"""
        return bool(self.index.size == size and np.array_equal(self.index.ravel(), np.arange(size)))

    def rows(self, array: Array, part: float = 1.0, rng: np.random.Generator | None = None) -> Array:
        """[samples, groups, width * copies], keys less their mean; of a random part of the tokens, if that is wanted."""
        xp = array_namespace(array)
        others = [i for i in range(array.ndim) if i not in self.axes]
        mean = None if self.tokens is None else widened(xp.mean(array, axis=self.tokens, keepdims=True))
        if part < 1 and rng is not None:
            axis = others[-1] if self.tokens is None else self.tokens
            count = math.ceil(part * array.shape[axis])
            kept = np.sort(rng.choice(array.shape[axis], count, replace=False))
            array = xp.take(array, xp.asarray(kept, device=device(array)), axis=axis)
        array = widened(array) if mean is None else widened(array) - mean
        flat = xp.reshape(xp.permute_dims(array, (*others, *self.axes)), (-1, math.prod(array.shape[a] for a in self.axes)))
        if self.plus is not None:
            flat = flat + xp.asarray(self.plus, dtype=flat.dtype, device=device(flat))
        if not self.in_order(flat.shape[1]):
            flat = xp.take(flat, xp.asarray(self.index.ravel(), device=device(flat)), axis=1)
        return xp.reshape(flat, (-1, len(self.index), self.index.shape[1] * self.copies))

    def put(self, rows: Array, like: Array) -> Array:
        """The inverse of `rows`, in a tensor of zeros shaped like `like`."""
        xp = array_namespace(rows)
        others = [i for i in range(like.ndim) if i not in self.axes]
        order = (*others, *self.axes)
        shape = tuple(like.shape[i] for i in order)
        where, size = device(like), (math.prod(shape[: len(others)]), math.prod(shape[len(others) :]))
        flat = xp.astype(xp.reshape(rows, (size[0], -1)), like.dtype)
        if not self.in_order(size[1]):
            given, flat = flat, xp.zeros(size, dtype=like.dtype, device=where)
            flat[:, xp.asarray(self.index.ravel(), device=where)] = given
        return xp.permute_dims(xp.reshape(flat, shape), tuple(int(i) for i in np.argsort(order)))


def widened(array: Array) -> Array:
    """In float32 at least: squares of half floats overflow."""
    xp = array_namespace(array)
    return array if array.dtype in (xp.float32, xp.float64) else xp.astype(array, xp.float32)
