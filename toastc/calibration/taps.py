"""Where the channels of a coupling can be watched while the model runs."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace


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

    @property
    def copies(self) -> int:
        return int(self.index.shape[2])

    def rows(self, array: Any) -> Any:
        """[samples, groups, width * copies], keys less their mean."""
        xp = array_namespace(array)
        if self.tokens is not None:
            array = array - xp.mean(array, axis=self.tokens, keepdims=True)
        others = [i for i in range(array.ndim) if i not in self.axes]
        flat = xp.reshape(xp.permute_dims(array, (*others, *self.axes)), (-1, math.prod(array.shape[a] for a in self.axes)))
        if self.plus is not None:
            flat = flat + xp.asarray(self.plus, dtype=flat.dtype, device=getattr(flat, "device", None))
        where = self.index.ravel()
        if not np.array_equal(where, np.arange(flat.shape[1])):
            flat = xp.take(flat, xp.asarray(where, device=getattr(flat, "device", None)), axis=1)
        return xp.reshape(flat, (-1, len(self.index), self.index.shape[1] * self.copies))

    def put(self, rows: np.ndarray, like: np.ndarray) -> np.ndarray:
        """The inverse of `rows` (of numpy), in a tensor of zeros shaped like `like`."""
        others = [i for i in range(like.ndim) if i not in self.axes]
        order = (*others, *self.axes)
        shape = [like.shape[i] for i in order]
        flat = np.zeros((math.prod(shape[: len(others)]), math.prod(shape[len(others) :])), like.dtype)
        flat[:, self.index.ravel()] = rows.reshape(len(flat), -1)
        return flat.reshape(shape).transpose(np.argsort(order))
