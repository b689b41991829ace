"""Choosing channels at run time, as torch functions; the ONNX adapter's `select` draws the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from ...system.errors import CannotShrink
from .. import Guide, Op, Selection, Value
from .classify import meta

aten = torch.ops.aten
CHOSEN = "toastc_chosen"  # in the meta of a node: the name of the selection that made it


class FxSelects:
    """The verbs of the protocol that have channels chosen at run time."""

    gm: fx.GraphModule
    _call: Callable[..., fx.Node]
    _fresh: Any
    _install: Any
    redirect: Any
    shape: Any
    _attended: dict[Op, fx.Node]

    def take(self, ops: Sequence[Op], index: np.ndarray) -> None:
        first = ops[0]
        read = self._call(aten.index_select.default, (current(first, 0), -1, self._numbers(first, index)), first)
        for op in ops:
            self.redirect(op, 0, read)

    def select(self, op: Op, selection: Selection) -> Value:
        x, weight = current(op, 0), current(op, 1)
        shape = self.shape(op.inputs[0])
        if len(shape) < 3:
            raise CannotShrink(f"{op}: the tokens of all images stand on one axis; which image they are of can not be told")
        call = self._drawing(op)  # every node here stands before the linear
        flat = x if len(shape) == 3 else call(aten.flatten.using_ints, x, 1, -2)
        which = self._which(op, flat, selection)
        which.meta[CHOSEN] = selection.name
        rows = weight if op.weight_axes[0] == 0 else call(aten.t.default, weight)
        if selection.per == "batch":
            own = call(aten.select.int, which, 0, 0)
            made = call(
                aten.matmul.default, call(aten.index_select.default, x, -1, own), call(aten.index_select.default, rows, 0, own)
            )
        else:
            tokens = call(aten.sym_size.int, flat, 1)
            wide = call(aten.expand.default, call(aten.unsqueeze.default, which, 1), [-1, tokens, -1])
            read = call(aten.gather.default, flat, 2, wide)
            made = call(aten.bmm.default, read, call(aten.index.Tensor, rows, [which]))
            if len(shape) > 3:
                sizes = [call(aten.sym_size.int, x, i) for i in range(len(shape) - 1)]
                made = call(aten.reshape.default, made, [*sizes, -1])
        bias = current(op, 2) if len(op.inputs) > 2 and op.inputs[2] is not None else None
        if bias is not None:
            made = call(aten.add.Tensor, made, bias)
        out = op.outputs[0]
        assert isinstance(out, fx.Node)
        out.replace_all_uses_with(made)
        return which

    def _which(self, op: Op, x: fx.Node, selection: Selection) -> fx.Node:
        call = self._drawing(op)
        tokens = self._numbers(op, np.array(selection.tokens))
        size = call(aten.abs.default, call(aten.index_select.default, x, 1, tokens))
        if selection.guide is not None:
            attended = call(aten.index_select.default, self._attention_of(selection.guide), 1, tokens)
            rest = call(aten.mean.dim, call(aten.mul.Tensor, size, call(aten.unsqueeze.default, attended, 2)), [1])
            own = call(aten.abs.default, call(aten.select.int, x, 1, 0))
            parts = [call(aten.mul.Scalar, v, w) for v, w in zip((own, rest), selection.weights, strict=True)]
            score = call(aten.add.Tensor, *parts)
        else:
            score = call(aten.mean.dim, size, [1])
        if selection.per == "batch":
            score = call(aten.mean.dim, score, [0], True)
        import operator

        return call(operator.getitem, call(aten.topk.default, score, selection.count, -1), 1)

    def _attention_of(self, guide: Guide) -> fx.Node:
        """[B, N]: how much the class token attends to every token, the mean over heads."""
        if guide.op not in self._attended:
            op = guide.op
            call = self._drawing(op)
            if guide.slot >= 0:
                row = call(aten.select.int, current(op, guide.slot), 2, 0)
            else:
                q, k, spec = current(op, 0), current(op, 1), op.attention
                assert spec is not None and spec.heads == spec.kv_heads  # as a guide is chosen
                scores = call(aten.matmul.default, call(aten.slice.Tensor, q, 2, 0, 1), call(aten.transpose.int, k, -2, -1))
                row = call(aten.select.int, call(aten.softmax.int, call(aten.mul.Scalar, scores, spec.scale), -1), 2, 0)
            self._attended[op] = call(aten.mean.dim, row, [1])
        return self._attended[guide.op]

    def mask(self, op: Op, slot: int, chosen: Value) -> None:
        x, shape = current(op, slot), self.shape(op.inputs[slot])
        call = self._drawing(op)
        hot = call(aten.sum.dim_IntList, call(aten.one_hot.default, chosen, shape[-1]), [1])
        for _ in range(len(shape) - 2):
            hot = call(aten.unsqueeze.default, hot, 1)
        self.redirect(op, slot, call(aten.mul.Tensor, x, call(aten.to.dtype, hot, meta(op.inputs[slot]).dtype)))

    def chosen(self, name: str, count: int) -> Value:
        last = [n for n in self.gm.graph.nodes if n.op == "placeholder"][-1]
        with self.gm.graph.inserting_after(last):
            return self.gm.graph.placeholder(name.replace(".", "_").replace("/", "_"))

    def _drawing(self, op: Op) -> Callable[..., fx.Node]:
        """Draws calls before an op, given what to call and with what."""
        return lambda target, *args: self._call(target, args, op)

    def _numbers(self, op: Op, index: np.ndarray) -> fx.Node:
        """A buffer of positions, where the weights are."""
        like = meta(op.inputs[0])
        name = self._fresh(f"{op.name}_positions")
        tensor = torch.from_numpy(np.ascontiguousarray(index, np.int64)).to(like.device if like.device.type != "meta" else "cpu")
        self._install(name, tensor, False, False)
        with self.gm.graph.inserting_before(op.node):
            node = self.gm.graph.get_attr(name)
        node.meta["val"] = tensor
        return node


def current(op: Op, slot: int) -> Any:
    """The operand as it is now: edits redirect a node's arguments, and leave `op.inputs` as they were."""
    args = op.node.args
    if op.type == "addmm":
        args = (args[1], args[2], args[0])
    if slot < len(args):
        return args[slot]
    return op.node.kwargs.get({1: "weight", 2: "bias"}.get(slot, ""))
