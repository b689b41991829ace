"""Writing side of the fx adapter: new tensors, new shape nodes, and what must be patched in place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from ...system.errors import CannotShrink
from .. import Dim, Kind, Op, Value
from .classify import meta

aten = torch.ops.aten


class FxEdits:
    """The verbs of the protocol that change the graph. New nodes stand right before the op they are made for."""

    gm: fx.GraphModule
    tensor: Callable[[Any], torch.Tensor]
    push: Callable[..., list[np.ndarray]]
    shape: Callable[[Any], tuple[int, ...]]
    sizes_from: Callable[[Op], Collection[Value]]
    size_at_runtime: Callable[[Any, int], Dim | None]
    varies: Callable[[Any], tuple[bool, ...]]
    _numbers: Callable[..., fx.Node]
    _constants: dict[Value, Any]
    _counter = 0
    _biases: dict[Op, tuple[Op, int]]

    def set_constant(self, op: Op, slot: int, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        """Give this one operand new numbers. Other users of the old tensor keep the old one."""
        old: Any = op.inputs[slot]
        array = make()
        if array.shape != tuple(shape):
            raise CannotShrink(f"{op}: operand {slot} became {array.shape}, expected {tuple(shape)}")
        like = self.tensor(old)
        new = torch.from_numpy(np.ascontiguousarray(array)).to(dtype=like.dtype, device=like.device)
        if old.op == "get_attr" and len(old.users) == 1 and self._sole(old):
            self._install(str(old.target), new, isinstance(like, torch.nn.Parameter), like.requires_grad)
            old.meta["val"] = new
            return
        name = self._fresh(f"{(op.path or op.name).replace('.', '_')}_weight")
        self._install(name, new, isinstance(like, torch.nn.Parameter), like.requires_grad)
        with self.gm.graph.inserting_before(op.node):
            node = self.gm.graph.get_attr(name)
        node.meta = {"val": new, "nn_module_stack": op.node.meta.get("nn_module_stack", {})}
        self.redirect(op, slot, node)

    def _sole(self, node: fx.Node) -> bool:
        """No other node reads the same tensor, under this name or another."""
        tensor = self._constants[node]
        return sum(1 for other in self._constants.values() if other is tensor) == 1

    def _install(self, name: str, tensor: torch.Tensor, parameter: bool, grad: bool) -> None:
        owner, _, leaf = name.rpartition(".")
        module = self.gm.get_submodule(owner)
        if parameter:
            module._parameters.pop(leaf, None)
            module.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=grad and tensor.is_floating_point()))
        else:
            module._buffers.pop(leaf, None)
            if hasattr(module, leaf):
                delattr(module, leaf)
            module.register_buffer(leaf, tensor)

    def _call(self, target: Any, args: tuple[Any, ...], like: Op, **words: Any) -> fx.Node:
        with self.gm.graph.inserting_before(like.node):
            node = self.gm.graph.call_function(target, args, words)
        if "nn_module_stack" in like.node.meta:
            node.meta["nn_module_stack"] = like.node.meta["nn_module_stack"]
        return node

    def split(self, value: Value, sizes: Sequence[int], like: Op) -> list[Value]:
        import operator

        parts = self._call(aten.split_with_sizes.default, (value, list(sizes), -1), like)
        return [self._call(operator.getitem, (parts, i), like) for i in range(len(sizes))]

    def transpose(self, value: Value, perm: Sequence[int], like: Op) -> Value:
        return self._call(aten.permute.default, (value, list(perm)), like)

    def reshape(self, value: Value, dims: Sequence[int | Dim], shape: Sequence[int], like: Op) -> Value:
        """Sizes that are fixed are numbers; the others are read with `sym_size`."""
        target: list[Any] = []
        for d in dims:
            if isinstance(d, int):
                target.append(d)
                continue
            source: Any = value if d.of is None else d.of
            size = meta(source).shape[d.axis] if meta(source) is not None else None
            target.append(size if isinstance(size, int) else self._call(aten.sym_size.int, (source, d.axis), like))
        return self._call(aten.reshape.default, (value, target), like)

    def replace(self, old: Value, new: Value) -> None:
        assert isinstance(old, fx.Node) and isinstance(new, fx.Node)
        old.replace_all_uses_with(new)

    def redirect(self, op: Op, slot: int, value: Value) -> None:
        """Replace the operand of one slot and leave the same tensor in other slots alone."""
        old = op.inputs[slot]
        turn = [i for i, v in enumerate(op.inputs) if v is old].index(slot)
        seen = -1

        def swap(arg: fx.Node) -> Any:
            nonlocal seen
            if arg is not old:
                return arg
            seen += 1
            return value if seen == turn else arg

        op.node.args, op.node.kwargs = fx.node.map_arg((op.node.args, op.node.kwargs), swap)

    def resize(self, op: Op, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> None:
        """Patch the sizes a shape node carries, if it does not come out right by itself."""
        from .resize import resize

        resize(self, op, before, after)

    def insert_bias(self, op: Op) -> tuple[Op, int]:
        if op not in self._biases:
            self._biases[op] = self._new_bias(op)
        return self._biases[op]

    def _new_bias(self, op: Op) -> tuple[Op, int]:
        """A third argument of `linear`; behind a matmul it is an add."""
        weight = self.tensor(op.inputs[1])
        zeros = torch.zeros(weight.shape[op.weight_axes[1]], dtype=weight.dtype, device=weight.device)
        name = self._fresh(f"{(op.path or op.name).replace('.', '_')}_bias")
        self._install(name, zeros, isinstance(weight, torch.nn.Parameter), weight.requires_grad)
        with self.gm.graph.inserting_before(op.node):
            bias = self.gm.graph.get_attr(name)
        bias.meta = {"val": zeros, "nn_module_stack": op.node.meta.get("nn_module_stack", {})}
        self._constants[bias] = zeros
        if op.type == "linear":
            op.node.args, op.node.kwargs = (*op.node.args[:2], bias), {k: v for k, v in op.node.kwargs.items() if k != "bias"}
            op.inputs = [*op.inputs[:2], bias]
            return op, 2
        with self.gm.graph.inserting_after(op.node):
            new = self.gm.graph.call_function(aten.add.Tensor, (op.node, bias))
        new.meta = dict(op.node.meta)
        op.node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        return Op(Kind.ELEMENTWISE, "add", str(new.name), op.path, [op.node, bias], [new], new, effect="affine"), 1

    def _fresh(self, stem: str) -> str:
        name = stem
        while hasattr(self.gm, name):
            self._counter += 1
            name = f"{stem}_{self._counter}"
        return name

    def set_attention(self, op: Op, heads: int, kv_heads: int, scale: Any) -> None:
        node = op.node
        node.args, node.kwargs = node.args[:6], {**node.kwargs, **gqa(node), "scale": scale}

    def quantize(self, op: Op, read: tuple[float, int, int], weight: np.ndarray, scales: np.ndarray) -> None:
        raise CannotShrink("a torch module is not quantised here; export it to ONNX")

    def attend(self, qkv: Sequence[Value], bias: Value | None, heads: int, scale: float, like: Op) -> Value:
        """One call, before an op: rows [batch, tokens, heads * width] to rows; `bias` is [images|1, heads|1, queries, keys]."""
        apart = [self._call(aten.unflatten.int, (x, 2, [heads, -1]), like) for x in qkv]
        turned = [self._call(aten.transpose.int, (x, 1, 2), like) for x in apart]
        whole = self._call(aten.scaled_dot_product_attention.default, (*turned, bias, 0.0, False), like, scale=scale)
        return self._call(aten.flatten.using_ints, (self._call(aten.transpose.int, (whole, 1, 2), like), 2), like)

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
    in_place = node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.is_impure() or in_place or node.kwargs.get("inplace") is True or "out" in node.kwargs


def drop_unused(gm: fx.GraphModule) -> None:
    """Forget parameters, buffers and submodules that the graph does not read."""
    used = {str(n.target) for n in gm.graph.nodes if n.op == "get_attr"}
    for name in [n for n, _ in (*gm.named_parameters(), *gm.named_buffers()) if n not in used]:
        owner, _, leaf = name.rpartition(".")
        module = gm.get_submodule(owner)
        module._parameters.pop(leaf, None)
        module._buffers.pop(leaf, None)
    gm.delete_all_unused_submodules()


def gqa(node: fx.Node) -> dict[str, Any]:
    """`enable_gqa` if it was given by position behind the scale."""
    return {"enable_gqa": node.args[7]} if len(node.args) > 7 else {}
