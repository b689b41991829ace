"""`Pen` in torch functions."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from .. import Op, Value
from .classify import meta
from .select import CHOSEN

aten = torch.ops.aten


class FxPen:
    """Draws before an op; numbers that are not whole have the type of `like`."""

    def __init__(self, graph: Any, op: Op, like: Value) -> None:
        self.graph, self.op, self.like = graph, op, meta(like)
        self.drawn: list[fx.Node] = []

    def _call(self, target: Any, *args: Any) -> fx.Node:
        node: fx.Node = self.graph._call(target, args, self.op)
        self.drawn.append(node)
        return node

    def number(self, numbers: np.ndarray) -> fx.Node:
        dtype = torch.int64 if numbers.dtype.kind in "iu" else self.like.dtype
        device = "cpu" if self.like.device.type == "meta" else self.like.device
        tensor = torch.from_numpy(np.ascontiguousarray(numbers)).to(dtype=dtype, device=device)
        name = self.graph._fresh(f"{self.op.name}_numbers")
        self.graph._install(name, tensor, False, False)
        with self.graph.gm.graph.inserting_before(self.op.node):
            node: fx.Node = self.graph.gm.graph.get_attr(name)
        node.meta["val"] = tensor
        return node

    def math(self, kind: str, a: Value, b: Value | np.ndarray) -> fx.Node:
        return self._call(getattr(aten, kind).Tensor, a, self.number(b) if isinstance(b, np.ndarray) else b)

    def root(self, x: Value) -> fx.Node:
        return self._call(aten.sqrt.default, x)

    def log(self, x: Value) -> fx.Node:
        return self._call(aten.log.default, x)

    def total(self, x: Value, axis: int) -> fx.Node:
        return self._call(aten.sum.dim_IntList, x, [axis])

    def product(self, a: Value, b: Value) -> fx.Node:
        return self._call(aten.matmul.default, a, b)

    def turn(self, x: Value, perm: Sequence[int]) -> fx.Node:
        return self._call(aten.permute.default, x, list(perm))

    def fold(self, x: Value, dims: Sequence[int]) -> fx.Node:
        sizes = [self._call(aten.sym_size.int, x, i) if d == 0 else d for i, d in enumerate(dims)]
        return self._call(aten.reshape.default, x, sizes)

    def widen(self, x: Value, axis: int) -> fx.Node:
        return self._call(aten.unsqueeze.default, x, axis)

    def take(self, x: Value, index: np.ndarray, axis: int) -> fx.Node:
        return self._call(aten.index_select.default, x, axis, self.number(index))

    def along(self, x: Value, index: Value) -> fx.Node:
        return self._call(aten.gather.default, x, 1, index)

    def look_up(self, table: np.ndarray, index: Value) -> fx.Node:
        return self._call(aten.index.Tensor, self.number(table), [index])

    def spread(self, x: Value, index: Value) -> fx.Node:
        wide = self._call(aten.expand.default, self.widen(index, 2), [-1, -1, self._call(aten.sym_size.int, x, 2)])
        return self._call(aten.gather.default, x, 1, wide)

    def best(self, x: Value, count: int) -> tuple[fx.Node, fx.Node]:
        found = self._call(aten.topk.default, x, count, 1)
        return self._call(operator.getitem, found, 0), self._call(operator.getitem, found, 1)

    def flags(self, index: Value, depth: int) -> fx.Node:
        return self.total(self._call(aten.one_hot.default, index, depth), 1)

    def running(self, x: Value) -> fx.Node:
        return self._call(aten.cumsum.default, x, 1)

    def where_equal(self, x: Value, numbers: np.ndarray) -> fx.Node:
        return self.as_real(self._call(aten.eq.Tensor, x, self.number(numbers)))

    def repeated(self, x: Value, like: Value) -> fx.Node:
        own, whole = (self._call(aten.sym_size.int, v, 0) for v in (x, like))
        return self._call(aten.repeat.default, x, [self._call(operator.floordiv, whole, own), 1, 1, 1])

    def as_real(self, x: Value) -> fx.Node:
        return self._call(aten.to.dtype, x, self.like.dtype)

    def named(self, x: Value, name: str) -> None:
        assert isinstance(x, fx.Node)
        x.meta[CHOSEN] = name
