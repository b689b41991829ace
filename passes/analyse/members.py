"""The weights of a site, member by member."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from toastc.graphs.protocols import Reader
from toastc.plans.sites import Member


class Weights:
    """A fused one is read once for q, k and v."""

    def __init__(self, graph: Reader) -> None:
        self.graph = graph
        self.known: dict[Hashable, np.ndarray] = {}

    def flattened(self, member: Member) -> np.ndarray:
        """[positions, rest]: the weight with the member's axes in front."""
        op, slot = member.operand
        array = self.graph.constant(op.inputs[slot])
        front = np.moveaxis(array, member.axes, range(len(member.axes)))
        return front.reshape(int(np.prod(front.shape[: len(member.axes)])), -1)

    def sizes(self, member: Member, power: int) -> np.ndarray:
        """[groups, width]: the sum of |w| or of w^2 over the member's slice for each channel."""
        key = member.operand, member.axes
        if key not in self.known:
            rows = self.flattened(member)
            if rows.dtype.kind != "f" or rows.dtype.itemsize < 4:
                rows = rows.astype(np.float32)
            if power == 1:
                self.known[key] = np.abs(rows).sum(axis=1, dtype=np.float64)
            else:
                self.known[key] = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        return np.asarray(self.known[key][member.index])

    def vectors(self, member: Member) -> np.ndarray:
        """[groups, width, rest]: the member's slice for each channel."""
        return np.asarray(self.flattened(member)[member.index]).astype(np.float32, copy=False)
