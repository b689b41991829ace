"""An fx graph, changed: new tensors, other wires, and what must be patched in place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from torch import fx

from ...system.errors import CannotShrink
from ...system.vocabulary import Json, Operand
from .. import Kind, Op, Role, Value
from .builder import FxBuilder
from .classify import meta, set_groups, writes
from .nodes import Nodes
from .operators import operator
from .reader import FxReader
from .reopen import drop_idle_masks, given_mask, propagate
from .resize import resize

aten = torch.ops.aten


class FxEditor(FxReader):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.nodes = Nodes(gm)
        self.biases: dict[Op, tuple[Op, int]] = {}  # those that were inserted

    def builder(self, before: Op, like: Value | None = None) -> FxBuilder:
        return FxBuilder(self.nodes, before, before.inputs[0] if like is None else like, self.calls)

    def operand(self, op: Op, slot: int) -> Operand:
        args = op.node.args
        if op.type == "addmm":
            args = (args[1], args[2], args[0])
        at = slot + 1 if op.norm and slot else slot  # sizes stand behind its tensor
        if at < len(args):
            return args[at]
        return op.node.kwargs.get({1: "weight", 2: "bias"}.get(slot, ""))

    # ---- constants -------------------------------------------------------------------------------------------------

    def set_constant(self, op: Op, slot: int, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        """Give this one operand new numbers. Other users of the old tensor keep the old one."""
        old: Operand = op.inputs[slot]
        if op.kind is Kind.CHANNELWISE and Role.CONVOLUTION in op.role and slot == 1:
            set_groups(op.node, shape[0])
        array = make()
        if array.shape != tuple(shape):
            raise CannotShrink(f"{op}: operand {slot} became {array.shape}, expected {tuple(shape)}")
        like = self.tensor(old)
        new = torch.from_numpy(np.ascontiguousarray(array)).to(dtype=like.dtype, device=like.device)
        if old.op == "get_attr" and len(old.users) == 1 and self._sole(old):
            self.nodes.install(str(old.target), new, isinstance(like, torch.nn.Parameter), like.requires_grad)
            old.meta["val"] = new
            return
        self.redirect(op, slot, self._own(op, "weight", new, like))

    def _sole(self, node: fx.Node) -> bool:
        """No other node reads the same tensor, under this name or another."""
        tensor = self.constants[node]
        return sum(1 for other in self.constants.values() if other is tensor) == 1

    def _own(self, op: Op, what: str, tensor: torch.Tensor, like: torch.Tensor) -> fx.Node:
        """A tensor of the op's own, a parameter if that is what it takes the place of, and the node that reads it."""
        name = self.nodes.fresh(f"{(op.path or op.name).replace('.', '_')}_{what}")
        self.nodes.install(name, tensor, isinstance(like, torch.nn.Parameter), like.requires_grad)
        with self.gm.graph.inserting_before(op.node):
            node = self.gm.graph.get_attr(name)
        node.meta = {"val": tensor, "nn_module_stack": op.node.meta.get("nn_module_stack", {})}
        return node

    def insert_bias(self, op: Op) -> tuple[Op, int]:
        if op not in self.biases:
            self.biases[op] = self._new_bias(op)
        return self.biases[op]

    def _new_bias(self, op: Op) -> tuple[Op, int]:
        """A third argument of `linear` and convolutions; behind a matmul it is an add."""
        weight = self.tensor(op.inputs[1])
        zeros = torch.zeros(weight.shape[op.weight_axes[1]], dtype=weight.dtype, device=weight.device)
        bias = self._own(op, "bias", zeros, weight)
        self.constants[bias] = zeros
        if op.type == "linear" or Role.CONVOLUTION in op.role:
            op.node.args = (*op.node.args[:2], bias, *op.node.args[3:])
            op.node.kwargs = {k: v for k, v in op.node.kwargs.items() if k != "bias"}
            op.inputs = [*op.inputs[:2], bias]
            return op, 2
        with self.gm.graph.inserting_after(op.node):
            new = self.gm.graph.call_function(aten.add.Tensor, (op.node, bias))
        new.meta = dict(op.node.meta)
        op.node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        return Op(Kind.ELEMENTWISE, "add", str(new.name), op.path, [op.node, bias], [new], new, Role.ADD, effect="affine"), 1

    # ---- wires -----------------------------------------------------------------------------------------------------

    def replace(self, old: Value, new: Value) -> None:
        assert isinstance(old, fx.Node) and isinstance(new, fx.Node)
        old.replace_all_uses_with(new)

    def redirect(self, op: Op, slot: int, value: Value) -> None:
        """Replace the operand of one slot and leave the same tensor in other slots alone."""
        old = op.inputs[slot]
        turn = [i for i, v in enumerate(op.inputs) if v is old].index(slot)
        seen = -1

        def swap(arg: fx.Node) -> Operand:
            nonlocal seen
            if arg is not old:
                return arg
            seen += 1
            return value if seen == turn else arg

        op.node.args, op.node.kwargs = fx.node.map_arg((op.node.args, op.node.kwargs), swap)

    def rewire(self, value: Value, made: Value, but: Sequence[fx.Node]) -> None:
        assert isinstance(value, fx.Node) and isinstance(made, fx.Node)
        for user in list(value.users):
            if user not in but and user.op != "output":
                user.replace_input_with(value, made)

    def add_input(self, name: str, count: int, like: Value | None = None) -> Value:
        last = [n for n in self.gm.graph.nodes if n.op == "placeholder"][-1]
        with self.gm.graph.inserting_after(last):
            made = self.gm.graph.placeholder(name.replace(".", "_").replace("/", "_"))
        known = None if like is None else meta(like)
        if known is not None:
            with known.fake_mode if hasattr(known, "fake_mode") else contextlib.nullcontext():
                made.meta["val"] = torch.zeros(known.shape[0], count, dtype=torch.int64, device=known.device)
        return made

    def pick_output(self, value: Value, axis: int, index: np.ndarray | Value) -> None:
        out = next(n for n in self.gm.graph.nodes if n.op == "output")
        assert isinstance(value, fx.Node)
        calls = self.gm.graph.call_function
        if isinstance(index, np.ndarray):
            numbers = self.nodes.positions(index, "whole_positions", out, meta(value).device)
            with self.gm.graph.inserting_before(out):
                made = calls(aten.index_select.default, (value, axis, numbers))
        else:
            if axis != 1 or meta(value).ndim != 3:
                raise CannotShrink("tokens: an output has tokens merged at run time, on another axis than its second")
            assert isinstance(index, fx.Node)
            with self.gm.graph.inserting_before(out):
                column = calls(aten.unsqueeze.default, (index, 2))
                wide = calls(aten.expand.default, (column, [-1, -1, meta(value).shape[2]]))
                made = calls(aten.gather.default, (value, 1, wide))
        out.replace_input_with(value, made)

    # ---- single nodes ----------------------------------------------------------------------------------------------

    def resize(self, op: Op, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> None:
        """Patch the sizes a shape node carries, if it does not come out right by itself."""
        resize(operator(op.type).resize, self, self.nodes, op, before, after)

    def set_attention(self, op: Op, heads: int, kv_heads: int, scale: Operand) -> None:
        node = op.node
        node.args, node.kwargs = node.args[:6], {**node.kwargs, **gqa(node), "scale": scale}

    def add_to_scores(self, op: Op, plus: Value) -> None:
        builder = self.builder(op)
        if op.attention is None:
            self.redirect(op, 0, builder.add(self.operand(op, 0), plus))
            return
        known = given_mask(op.node)
        if known is not None and meta(known).dtype is torch.bool:
            raise CannotShrink(f"tokens: {op} has a mask of booleans, to which sizes can not be added")
        mask = plus if known is None else builder.add(known, plus)
        args = list(op.node.args)
        if len(args) > 3:
            args[3] = mask
            op.node.args = tuple(args)
        else:
            op.node.kwargs = {**op.node.kwargs, "attn_mask": mask}

    # ---- the whole graph -------------------------------------------------------------------------------------------

    def without_idle_masks(self) -> Self:
        if not drop_idle_masks(self.gm, self.tensor):
            return self
        self.gm.graph.eliminate_dead_code(has_effect)
        self.gm.recompile()
        return type(self)(self.gm)

    def reopened(self) -> Self:
        propagate(self.gm, self.as_read)
        return type(self)(self.gm)

    def finish(self) -> None:
        for node in self.gm.graph.nodes:  # a view asks for strides that a permuted tensor does not have
            if node.op == "call_function" and node.target is aten.view.default:
                node.target = aten.reshape.default
            elif node.op == "call_method" and node.target == "view" and not isinstance(node.args[1], torch.dtype):
                node.target = "reshape"
        self.gm.graph.eliminate_dead_code(has_effect)
        drop_unused(self.gm)
        self.gm.graph.lint()
        self.gm.recompile()


def has_effect(node: fx.Node) -> bool:
    """Nodes that stay although nobody uses their result. To fx a method that writes into its tensor (`copy_`) is pure."""
    return node.is_impure() or writes(node) or node.kwargs.get("inplace") is True or "out" in node.kwargs


def drop_unused(gm: fx.GraphModule) -> None:
    """Forget parameters, buffers and submodules that the graph does not read."""
    used = {str(n.target) for n in gm.graph.nodes if n.op == "get_attr"}
    for name in [n for n, _ in (*gm.named_parameters(), *gm.named_buffers()) if n not in used]:
        owner, _, leaf = name.rpartition(".")
        module = gm.get_submodule(owner)
        module._parameters.pop(leaf, None)
        module._buffers.pop(leaf, None)
    gm.delete_all_unused_submodules()


def gqa(node: fx.Node) -> Json:
    """`enable_gqa` if it was given by position behind the scale."""
    return {"enable_gqa": node.args[7]} if len(node.args) > 7 else {}
