"""Channel numbers that travel through a graph, and the classes they fall into.

A label array has the rank of the tensor it stands for, and size 1 along every axis where all labels are
equal (it is *collapsed*); -1 means "no channel of any linear". Channels that must be cut together are
merged by `Classes`, a union-find over numpy arrays.
"""

from __future__ import annotations

import numpy as np

NONE = -1


def collapse(labels: np.ndarray) -> np.ndarray | None:
    """Keep one slice of every axis along which the labels do not change; None if there is no label at all."""
    if not labels.size:
        return None
    for axis in range(labels.ndim):
        if labels.shape[axis] == 1:
            continue
        before = (slice(None),) * axis
        first, last = labels[*before, :1], labels[*before, -1:]
        if labels.strides[axis] != 0 and (not np.array_equal(first, last) or not (labels == first).all()):
            continue
        labels = first
    return None if (labels == NONE).all() else np.ascontiguousarray(labels)


def stored(labels: np.ndarray) -> np.ndarray:
    """A copy of what is in memory: axes along which it is only repeated have size 1."""
    return np.array(labels[tuple(slice(None if step else 1) for step in labels.strides)], order="C")


def varying(labels: np.ndarray) -> tuple[int, ...]:
    return tuple(i for i, size in enumerate(labels.shape) if size > 1)


class Classes:
    """Union-find. `new(n)` hands out ids, `tie(a, b)` merges them pairwise (arrays broadcast)."""

    def __init__(self) -> None:
        self._parent = np.zeros(1024, np.int64)
        self.size = 0

    def new(self, count: int) -> np.ndarray:
        start, self.size = self.size, self.size + count
        if self.size > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros(max(self.size, len(self._parent)), np.int64)])
        ids = np.arange(start, self.size)
        self._parent[ids] = ids
        return ids

    def find(self, ids: np.ndarray) -> np.ndarray:
        """The representative of each id; -1 stays -1."""
        ids = np.asarray(ids)
        roots = np.where(ids >= 0, self._parent[ids], NONE)
        while True:
            above = np.where(roots >= 0, self._parent[roots], NONE)
            if np.array_equal(above, roots):
                break
            roots = above
        return roots

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        a, b = (x.ravel() for x in np.broadcast_arrays(a, b))
        both = (a >= 0) & (b >= 0)
        a, b = a[both], b[both]
        while True:
            a, b = self.find(a), self.find(b)
            apart = a != b
            if not apart.any():
                return
            a, b = a[apart], b[apart]
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))
