"""New nodes of torch functions."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Self

import numpy as np
import torch
from torch import fx

from ...system.vocabulary import Operand
from .. import Dim, Op, Value
from .calls import Call
from .classify import meta
from .nodes import Nodes

aten = torch.ops.aten
CHOSEN = "toastc_chosen"  # in the meta of a node: the name under which a proof finds it


class FxBuilder:
    """Draws before an op; numbers that are not whole have the type of `like`, and all of them its device."""

    def __init__(self, nodes: Nodes, op: Op, like: Value, calls: Mapping[Op, Call]) -> None:
        self.nodes, self.op, self.like, self.calls = nodes, op, meta(like), calls
        self.drawn: list[fx.Node] = []

    def draw(self, target: Operand, *args: Operand, method: bool = False, **words: Operand) -> fx.Node:
        node = self.nodes.call(target, args, self.op, method, **words)
        self.drawn.append(node)
        return node

    def wide(self) -> Self:
        if self.like.dtype.itemsize > 2:
            return self
        made = copy(self)
        made.like = self.like.to(torch.float32)
        return made

    def again(self, op: Op, inputs: Sequence[Value | None]) -> fx.Node:
        call = self.calls[op]
        others: dict[Operand, Operand] = dict(zip(op.inputs, inputs, strict=True))
        args, kwargs = fx.node.map_arg((call.args, call.kwargs), lambda node: others.get(node, node))
        return self.draw(call.target, *args, method=call.method, **kwargs)

    # ---- numbers -----------------------------------------------------------------------------------------------

    def constant(self, numbers: np.ndarray) -> fx.Node:
        device = "cpu" if self.like.device.type == "meta" else self.like.device
        dtype = torch.int64 if numbers.dtype.kind in "iu" else self.like.dtype
        tensor = torch.from_numpy(np.ascontiguousarray(numbers)).to(dtype=dtype, device=device)
        return self.nodes.hold(tensor, self.nodes.fresh(f"{self.op.name}_numbers"), self.op.node)

    def held(self, x: Value | np.ndarray) -> Value:
        return self.constant(x) if isinstance(x, np.ndarray) else x

    # ---- element by element ----------------------------------------------------------------------------------------

    def add(self, a: Value, b: Value | np.ndarray) -> fx.Node:
        return self.draw(aten.add.Tensor, a, self.held(b))

    def sub(self, a: Value, b: Value | np.ndarray) -> fx.Node:
        return self.draw(aten.sub.Tensor, a, self.held(b))

    def mul(self, a: Value, b: Value | np.ndarray) -> fx.Node:
        return self.draw(aten.mul.Tensor, a, self.held(b))

    def div(self, a: Value, b: Value | np.ndarray) -> fx.Node:
        return self.draw(aten.div.Tensor, a, self.held(b))

    def sqrt(self, x: Value) -> fx.Node:
        return self.draw(aten.sqrt.default, x)

    def log(self, x: Value) -> fx.Node:
        return self.draw(aten.log.default, x)

    def abs(self, x: Value) -> fx.Node:
        return self.draw(aten.abs.default, x)

    def equal(self, x: Value, numbers: np.ndarray) -> fx.Node:
        return self.cast(self.draw(aten.eq.Tensor, x, self.constant(numbers)))

    def cast(self, x: Value) -> fx.Node:
        return self.draw(aten.to.dtype, x, self.like.dtype)

    # ---- sums and products ---------------------------------------------------------------------------------------

    def softmax(self, x: Value) -> fx.Node:
        return self.draw(aten.softmax.int, x, -1)

    def sum(self, x: Value, axis: int) -> fx.Node:
        return self.draw(aten.sum.dim_IntList, x, [axis])

    def mean(self, x: Value, axis: int, keep: bool = False) -> fx.Node:
        return self.draw(aten.mean.dim, x, [axis], keep)

    def cumsum(self, x: Value) -> fx.Node:
        return self.draw(aten.cumsum.default, x, 1)

    def matmul(self, a: Value, b: Value) -> fx.Node:
        return self.draw(aten.matmul.default, a, b)

    def topk(self, x: Value, count: int, axis: int) -> tuple[fx.Node, fx.Node]:
        found = self.draw(aten.topk.default, x, count, axis)
        return self.draw(operator.getitem, found, 0), self.draw(operator.getitem, found, 1)

    def one_hot(self, index: Value, depth: int) -> fx.Node:
        return self.sum(self.draw(aten.one_hot.default, index, depth), 1)

    # ---- rearrangements --------------------------------------------------------------------------------------------

    def transpose(self, x: Value, perm: Sequence[int]) -> fx.Node:
        return self.draw(aten.permute.default, x, list(perm))

    def unsqueeze(self, x: Value, axis: int) -> fx.Node:
        return self.draw(aten.unsqueeze.default, x, axis)

    def split(self, x: Value, sizes: Sequence[int]) -> list[Value]:
        parts = self.draw(aten.split_with_sizes.default, x, list(sizes), -1)
        return [self.draw(operator.getitem, parts, i) for i in range(len(sizes))]

    def reshape(self, x: Value, dims: Sequence[int | Dim]) -> fx.Node:
        """Sizes that are fixed are numbers; the others are read with `sym_size`."""
        target = [d if isinstance(d, int) else self.size(x if d.of is None else d.of, d.axis) for d in dims]
        return self.draw(aten.reshape.default, x, target)

    def size(self, x: Value, axis: int) -> Operand:
        known = meta(x)
        size = None if known is None else known.shape[axis]
        return size if isinstance(size, int) else self.draw(aten.sym_size.int, x, axis)

    def repeat(self, x: Value, like: Value) -> fx.Node:
        own, whole = (self.draw(aten.sym_size.int, v, 0) for v in (x, like))
        return self.draw(aten.repeat.default, x, [self.draw(operator.floordiv, whole, own), 1, 1, 1])

    # ---- picking -----------------------------------------------------------------------------------------------------

    def take(self, x: Value, index: np.ndarray, axis: int) -> fx.Node:
        if not index.ndim:
            return self.draw(aten.select.int, x, axis, int(index))
        held = self.nodes.positions(index, f"{self.op.name}_positions", self.op.node, self.like.device)
        return self.draw(aten.index_select.default, x, axis, held)

    def gather(self, x: Value, index: Value, axis: int) -> fx.Node:
        return self.draw(aten.index_select.default, x, axis, index)

    def gather_rows(self, table: Value | np.ndarray, index: Value) -> fx.Node:
        return self.draw(aten.index.Tensor, self.held(table), [index])

    def gather_along(self, x: Value, index: Value) -> fx.Node:
        return self.draw(aten.gather.default, x, 1, index)

    def gather_tokens(self, x: Value, index: Value) -> fx.Node:
        wide = self.draw(aten.expand.default, self.unsqueeze(index, 2), [-1, -1, self.draw(aten.sym_size.int, x, 2)])
        return self.draw(aten.gather.default, x, 1, wide)

    def gather_channels(self, x: Value, index: Value) -> fx.Node:
        wide = self.draw(aten.expand.default, self.unsqueeze(index, 1), [-1, self.draw(aten.sym_size.int, x, 1), -1])
        return self.draw(aten.gather.default, x, 2, wide)

    # ---- whole attentions, names -------------------------------------------------------------------------------------

    def attend(self, qkv: Sequence[Value], bias: Value | None, heads: int, scale: float) -> fx.Node:
        """Rows [batch, tokens, heads * width] to rows; `bias` is [images|1, heads|1, queries, keys]."""
        apart = [self.draw(aten.unflatten.int, x, 2, [heads, -1]) for x in qkv]
        turned = [self.draw(aten.transpose.int, x, 1, 2) for x in apart]
        whole = self.draw(aten.scaled_dot_product_attention.default, *turned, bias, 0.0, False, scale=scale)
        return self.draw(aten.flatten.using_ints, self.draw(aten.transpose.int, whole, 1, 2), 2)

    def name(self, x: Value, name: str) -> None:
        assert isinstance(x, fx.Node)
        x.meta[CHOSEN] = name
