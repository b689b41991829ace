"""An fx graph, looked at: nodes become `Op`s; labels are pushed by calling a node's own target on integer tensors."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence

import numpy as np
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from ...system.arrays import as_array
from ...system.vocabulary import Operand
from .. import AttentionSpec, Dim, Kind, Op, Role, Value, wiring
from ..labels import stored
from ..macs import macs_of
from .calls import Call, tensor_args
from .classify import (
    CREATIONS,
    RANDOM,
    argument,
    effect_of,
    factor_of,
    is_getitem_of_tuple,
    lent_sizes,
    meta,
    op_name,
    parts_of,
    product_spec,
)
from .names import hint, module_path, owner_of
from .operators import operator
from .reopen import reading


class FxReader:
    """Owns `gm`."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.constants: dict[Value, Operand] = {}  # tensor, or the node to compute it from
        nodes = list(gm.graph.nodes)
        self.as_read = {node: said for node in nodes if (said := reading(node)) is not None}
        for node in nodes:
            self._note_constant(node)
        self.inputs = [n for n in nodes if n.op == "placeholder" and self.has_shape(n)]
        self.batch = self._batch()
        self.ops = [op for node in nodes if (op := self._op(node)) is not None]
        self.calls = {op: Call.of(op.node) for op in self.ops}  # as they were before any edit
        out = next(n for n in nodes if n.op == "output")
        self.outputs: frozenset[Operand] = frozenset(out.all_input_nodes)
        self._producers, self._users = wiring(self.ops)

    # ---- reading ---------------------------------------------------------------------------------------

    def has_shape(self, value: Operand) -> bool:
        """Is it a tensor whose shape does not hang on the numbers in another?"""
        found = meta(value)
        if not isinstance(found, torch.Tensor):
            return False
        return all(isinstance(size, int) or not free_unbacked_symbols(size) for size in found.shape)

    def shape(self, value: Value) -> tuple[int, ...]:
        return tuple(hint(d) for d in meta(value).shape)

    def varies(self, value: Value) -> tuple[bool, ...]:
        return tuple(isinstance(d, torch.SymInt) for d in meta(value).shape)

    def size_at_runtime(self, value: Value, axis: int) -> Dim | None:
        wanted = str(meta(value).shape[axis])
        for given in self.inputs:
            for i, size in enumerate(meta(given).shape):
                if str(size) == wanted:
                    return Dim(i, given)
        return None

    def sizes_from(self, op: Op) -> Collection[Value]:
        return lent_sizes(op.node, op.inputs) if operator(op.type).sizes else ()

    def is_constant(self, value: Value) -> bool:
        return value in self.constants

    def tensor(self, value: Operand) -> torch.Tensor:
        """The constant as it was before any edit; computed on first use where the graph computes it.

        Several threads may ask at once: what is there is looked up one time.
        """
        found = self.constants[value]
        if isinstance(found, Call):
            with torch.no_grad():
                found = self.constants[value] = found.run(self.tensor)
        result: torch.Tensor = found
        return result

    def constant(self, value: Value) -> np.ndarray:
        return as_array(self.tensor(value))

    def identity(self, value: Value) -> Hashable:
        found = self.constants.get(value)
        return id(found) if isinstance(found, torch.Tensor) else value

    def constant_name(self, op: Op, slot: int) -> str:
        value: Operand = op.inputs[slot]
        if value.op == "get_attr":
            return str(value.target)
        return f"{op.path}.weight" if op.path else str(value.name)

    def producer(self, value: Value) -> Op | None:
        return self._producers.get(value)

    def users(self, value: Value) -> Sequence[tuple[Op, int]]:
        return self._users.get(value, ())

    def push(self, op: Op, arrays: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """Call the node's own target on integer tensors: where it takes them, on ones that hold each number once."""
        pairs = [(v, a) for v, a in zip(op.inputs, arrays, strict=True) if v is not None and a is not None]
        given = {v: torch.from_numpy(stored(a)).expand(a.shape) for v, a in pairs}
        try:
            return self._pushed(op, given)
        except RuntimeError:  # it looks at strides
            return self._pushed(op, {v: tensor.contiguous() for v, tensor in given.items()})

    def _pushed(self, op: Op, tensors: Mapping[Value, torch.Tensor]) -> list[np.ndarray]:
        def concrete(node: fx.Node) -> Operand:
            if node in tensors:
                return tensors[node]
            if node in self.constants:
                return self.tensor(node)
            other = meta(node)
            if other is None:  # a number that is no tensor: older versions of torch take no note of those
                return Call.of(node).run(concrete)
            return torch.empty(self.shape(node), dtype=torch.int64) if isinstance(other, torch.Tensor) else hint(other)

        made = self.calls[op].run(concrete)
        return [p.numpy() for p in (made if isinstance(made, tuple | list) else [made])]

    def float_types(self) -> set[str]:
        """Names of the types that the values at run time have: float32, float16, ..."""
        types = {meta(v).dtype for op in self.ops for v in op.outputs if v is not None}
        return {str(t).removeprefix("torch.") for t in types if t.is_floating_point}

    def position(self, value: Value) -> int:
        return list(self.gm.graph.nodes).index(value)

    def input_sizes(self) -> Mapping[str, tuple[int | None, ...]]:
        free = {n: self.varies(n) for n in self.inputs if "given" not in n.meta}
        return {n.name: tuple(None if f else d for d, f in zip(self.shape(n), free[n], strict=True)) for n in free}

    def totals(self) -> tuple[int, int]:
        return sum(op.macs for op in self.ops), self.count_parameters()

    def count_parameters(self) -> int:
        tensors = {id(t): t for t in self.gm.parameters() if t.is_floating_point()}
        return sum(t.numel() for t in tensors.values())

    # ---- building the view -------------------------------------------------------------------------------

    def _note_constant(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            found: Operand = self.gm
            for part in str(node.target).split("."):
                found = getattr(found, part, None)
            if isinstance(found, torch.Tensor):
                self.constants[node] = found
                node.meta.setdefault("val", found)
        elif node.op in ("call_function", "call_method") and (self.has_shape(node) or isinstance(meta(node), tuple | list)):
            name, above = op_name(node), node.all_input_nodes
            computed = above and all(n in self.constants for n in above)
            created = not above and name in CREATIONS
            if (computed or created) and name not in RANDOM and name not in ("sdpa",):
                self.constants[node] = Call.of(node)

    def _batch(self) -> int:
        for node in self.inputs:
            free = [i for i, v in enumerate(self.varies(node)) if v]
            if self.shape(node):
                return self.shape(node)[free[0] if free else 0]
        return 1

    def _op(self, node: fx.Node) -> Op | None:
        if node.op in ("placeholder", "get_attr", "output") or node in self.constants:
            return None
        if is_getitem_of_tuple(node):
            return None  # an output of the op above
        name, above = op_name(node), tensor_args(node)
        row = operator(name)
        outputs = self._outputs(node)
        kind = Kind.OPAQUE
        unknown = any(isinstance(meta(n), torch.Tensor) and not self.has_shape(n) for n in (node, *parts_of(node)))
        known = not unknown and all(self.has_shape(n) for n in above)
        if known and node.op in ("call_function", "call_method") and above and any(v is not None for v in outputs):
            ranks, constant = [len(self.shape(n)) for n in above], [n in self.constants for n in above]
            kind = row.kind if row.refine is None else row.refine(node, constant, ranks)
        if all(v is None for v in outputs) and not unknown:
            above = []  # reads a size or checks a type, which follow whatever the tensor becomes
        if name.endswith("_as"):
            above = above[:1]  # the other tensor only lends its type or its sizes
        path = module_path(node) or next((p for n in above[1:] if (p := owner_of(n))), "")
        op = Op(kind, name, str(node.name), path, list(above), outputs, node, row.role)
        if unknown:
            op.why = "has an output whose shape is only known at run time"
        if kind is Kind.SHAPE and name in ("index_select", "take_along_dim"):
            if above[1] in self.constants:
                op.inputs = [above[0]]
            else:
                op.kind, op.why = Kind.OPAQUE, "picks positions at run time"
        if kind is Kind.LINEAR and name == "addmm":
            op.inputs = [above[1], above[2], above[0]]
        if kind is Kind.CHANNELWISE or Role.CONVOLUTION in row.role:
            op.axis, op.effect, op.weight_axes = 1, row.effect, (1, 0)
        elif kind is Kind.LINEAR:
            op.weight_axes = (1, 0) if name == "linear" else (0, 1)
        elif kind is Kind.ELEMENTWISE:
            op.effect, op.factor = effect_of(node, row.effect), factor_of(node)
        elif kind is Kind.REDUCE:
            op.axes = () if row.axes is None else row.axes(node, len(self.shape(above[0])))
            op.norm = row.norm(node) if row.norm else None
            op.inputs = op.inputs[: 3 if op.norm else 1]
        elif kind is Kind.PRODUCT:
            if name == "baddbmm":  # a mask, which may not count, and two factors
                above = [above[1], above[2], above[0]][: 3 if node.kwargs.get("beta", 1) else 2]
                alpha: Operand = node.kwargs.get("alpha", 1)
                op.inputs, op.factor = list(above), None if alpha == 1 else float(alpha)
            spec = product_spec(node, name, [len(self.shape(n)) for n in above[:2]])
            op.kind, op.spec = (kind, spec) if spec else (Kind.OPAQUE, op.spec)
        elif kind is Kind.ATTENTION:
            self._sdpa(op, node)
        op.macs = macs_of(op, lambda v: self.shape(v) if self.has_shape(v) else None) // self.batch
        return op

    def _sdpa(self, op: Op, node: fx.Node) -> None:
        shapes = [self.shape(v) for v in op.inputs[:3]]
        heads, kv = shapes[0][1], shapes[1][1]
        if heads % kv or shapes[2][1] != kv:
            op.kind = Kind.OPAQUE
            return
        scale = argument(node, 6, "scale")
        own = 1 / math.sqrt(shapes[0][3]) if scale is None else scale if isinstance(scale, fx.Node) else float(scale)
        op.attention = AttentionSpec(heads, kv, ("bhnd",) * 4, own, masks=(3,) if len(op.inputs) > 3 else ())

    def _outputs(self, node: fx.Node) -> list[Value | None]:
        value = meta(node)
        if not isinstance(value, tuple | list):
            return [node if self.has_shape(node) else None]
        outputs: list[Value | None] = [None] * len(value)
        for user in parts_of(node):
            at: Operand = user.args[1]
            outputs[int(at)] = user if self.has_shape(user) else None  # sizes come in tuples, too
        return outputs
