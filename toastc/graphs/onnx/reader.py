"""An ONNX graph, looked at: nodes become `Op`s; constants fold; labels are pushed through shape nodes."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from ...system.vocabulary import Operand
from .. import Dim, Kind, Op, Role, Value, wiring
from ..macs import macs_of
from . import facts as facts_of
from .branches import inline_known_branches
from .classify import attention_spec, attribute, product_spec
from .files import read_tensor
from .inputs import batch_axis
from .names import module_path, operator_of
from .operators import operator

FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}


class OnnxReader:
    """Owns `model`: the caller hands over a copy it will not use again. `provider`: where it is run, if it is."""

    def __init__(self, model: ir.Model, provider: str = "cpu") -> None:
        self.model, self.provider = model, provider
        self.graph = model.graph
        self.opsets = dict(model.graph.opset_imports)
        self._gather()
        while inline_known_branches(self.graph, self.facts, self.other):
            self._gather()
        self.batch = self._batch()
        self.tensors = {v: v.const_value for v in self.graph.initializers.values() if v.const_value is not None}
        self._recipes: dict[Value, tuple[onnx.NodeProto, tuple[ir.Value, ...], int]] = {}  # how constants are computed
        self.constants = self._find_constants()
        self.folded = self._fold_small()
        self.ops = [op for node in self.graph if (op := self._op(node)) is not None]
        self._shape_nodes = {op: self._as_read(op) for op in self.ops if op.kind is Kind.SHAPE}
        self.outputs = frozenset(self.graph.outputs)
        self._index()

    # ---- reading ---------------------------------------------------------------------------------------

    def shape(self, value: Value) -> tuple[int, ...]:
        return self.facts.shapes[value]

    def has_shape(self, value: Value) -> bool:
        return value in self.facts.shapes

    def varies(self, value: Value) -> tuple[bool, ...]:
        other = self.other.shapes.get(value, ())
        mine = self.shape(value)
        return tuple(a != b for a, b in zip(mine, other, strict=True)) if len(other) == len(mine) else (True,) * len(mine)

    def size_at_runtime(self, value: Value, axis: int) -> Dim | None:
        """An axis of a model input that is as long as this one, whatever the sizes are."""
        if value not in self.other.shapes:
            return None
        wanted = self.shape(value)[axis], self.other.shapes[value][axis]
        for given in facts_of.runtime_inputs(self.model):
            for i, pair in enumerate(zip(self.shape(given), self.other.shapes[given], strict=True)):
                if pair == wanted:
                    return Dim(i, given)
        return None

    def sizes_from(self, op: Op) -> Collection[Value]:
        found, todo = list[Value](), list(op.node.inputs[1:2]) if operator(op.type).sizes else []
        while todo:
            value = todo.pop()
            above = None if value is None or value in self.constants else value.producer()
            if above is not None:
                reads = operator_of(above) in ("Shape", "Size")
                (found if reads else todo).extend(above.inputs)
        return found

    def is_constant(self, value: Value) -> bool:
        return value in self.constants

    def constant(self, value: Value) -> np.ndarray:
        """The numbers of a constant, as the file had them before any edit."""
        if value in self.folded:
            return self.folded[value]
        if value in self.tensors:
            return read_tensor(self.tensors[value])
        proto, inputs, position = self._recipes[value]
        arrays = facts_of.evaluate_proto(proto, [self.constant(v) for v in inputs], self.opsets)
        return np.asarray(arrays[position])

    def identity(self, value: Value) -> Hashable:
        while isinstance(value, ir.Value) and (node := value.producer()) is not None and operator_of(node) == "Identity":
            value = node.inputs[0]
        return value

    def constant_name(self, op: Op, slot: int) -> str:
        value: Operand = op.inputs[slot]
        named = str(value.name)
        if "." in named and not named.startswith(("onnx::", "/")):
            return named
        return f"{op.path}.weight" if op.path else named

    def producer(self, value: Value) -> Op | None:
        return self._producers.get(value)

    def users(self, value: Value) -> Sequence[tuple[Op, int]]:
        return self._users.get(value, ())

    def _as_read(self, op: Op) -> tuple[onnx.NodeProto, list[np.ndarray]]:
        """A node before any edit, and the sizes and positions it is given."""
        sizes = [self.facts.data[v] for v in op.node.inputs[len(op.inputs) :] if v is not None]
        return ir.serde.serialize_node(op.node), sizes

    def push(self, op: Op, arrays: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """Execute a shape node, as it was read, on integer arrays instead of its tensors."""
        proto, sizes = self._shape_nodes[op]
        return facts_of.evaluate_proto(proto, [*(a for a in arrays if a is not None), *sizes], self.opsets)

    def float_types(self) -> set[str]:
        """Names of the types that the values at run time have: float32, float16, ..."""
        return {FLOATS[kind] for op in self.ops for v in op.outputs if (kind := self.facts.dtypes.get(v)) in FLOATS}

    def position(self, value: Operand) -> int:
        return self._order[value.producer()]

    def input_sizes(self) -> Mapping[str, tuple[int | None, ...]]:
        given = facts_of.runtime_inputs(self.model)
        return {str(v.name): tuple(d if isinstance(d, int) else None for d in v.shape or ()) for v in given}

    def totals(self) -> tuple[int, int]:
        """MACs of one sample and the number of parameters."""
        return sum(op.macs for op in self.ops), self.count_parameters(self.model)

    @staticmethod
    def count_parameters(model: ir.Model) -> int:
        tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
        return sum(int(t.size) for t in tensors if t.dtype.is_floating_point() and t.size > 1)

    # ---- building the view -------------------------------------------------------------------------------

    def _gather(self) -> None:
        small = facts_of.sizes_for(self.model)
        self.facts = facts_of.gather(self.model, small)
        self.other = facts_of.gather(self.model, facts_of.sizes_for(self.model, large=True)) if small else self.facts

    def _batch(self) -> int:
        for value in facts_of.runtime_inputs(self.model):
            if self.has_shape(value) and len(self.shape(value)):
                return self.shape(value)[batch_axis(self.shape(value), self.varies(value))]
        return 1

    def _find_constants(self) -> set[ir.Value]:
        found = set(self.tensors)
        for node in self.graph:
            if operator(operator_of(node)).random or not node.outputs:
                continue
            inputs = [v for v in node.inputs if v is not None]
            if operator_of(node) == "Constant" or (inputs and all(v in found for v in inputs)) or self._same_data(node):
                found.update(node.outputs)
                proto = ir.serde.serialize_node(node)
                self._recipes.update({v: (proto, tuple(inputs), i) for i, v in enumerate(node.outputs)})
        return found

    def _same_data(self, node: ir.Node) -> bool:
        """Known, and the same whatever the run-time sizes are."""
        mine, other = self.facts.data, self.other.data
        return all(
            v in mine and v in other and mine[v].shape == other[v].shape and np.array_equal(mine[v], other[v])
            for v in node.outputs
        )

    def _fold_small(self) -> dict[ir.Value, np.ndarray]:
        """Values computed from sizes alone become constants, so that a cut can not change what they meant."""
        folded = {}
        for node in self.graph:
            for value in node.outputs:
                if value in self.constants and value in self.facts.data and node.op_type != "Constant":
                    folded[value] = self.facts.data[value]
        return folded

    def _index(self) -> None:
        self._order = {node: i for i, node in enumerate(self.graph)}
        self._producers, self._users = wiring(self.ops)

    def _op(self, node: ir.Node) -> Op | None:
        if all(v in self.constants for v in node.outputs):
            return None
        shapes = [self.facts.shapes.get(v) if v is not None else None for v in node.inputs]
        constant = [v in self.constants if v is not None else True for v in node.inputs]
        taken = all(v is None or v in self.facts.shapes for v in node.inputs)
        made = all(v in self.facts.shapes for i, v in enumerate(node.outputs) if not i or v.uses() or v.is_graph_output())
        row = operator(operator_of(node))
        kind = row.kind if taken and made else Kind.OPAQUE
        kind = row.refine(node, constant, shapes) if row.refine is not None and kind is not Kind.OPAQUE else kind
        op = Op(kind, operator_of(node), node.name or "", module_path(node), list(node.inputs),
                [v if v in self.facts.shapes else None for v in node.outputs], node, row.role)  # fmt: skip
        if kind is Kind.OPAQUE and any(v not in self.facts.shapes for v in node.outputs if v.uses()):
            op.why = "has an output whose shape is only known at run time"
        elif not taken:
            op.why = "takes a tensor whose shape is only known at run time"
        if op.type == "Shape":
            op.inputs = []  # reads a size, which follows whatever the tensor becomes
        if kind is Kind.SHAPE and op.type != "Concat":
            if all(v is None or v in self.facts.data for v in node.inputs[1:]):
                op.inputs = op.inputs[:1]  # the rest are sizes and positions
            else:
                op.kind, op.why = Kind.OPAQUE, "takes its sizes at run time"
        if kind in (Kind.ELEMENTWISE, Kind.CHANNELWISE):
            op.effect = row.effect
        elif kind is Kind.PRODUCT:
            spec = product_spec(node, shapes)
            op.kind, op.spec = (Kind.PRODUCT, spec) if spec else (Kind.OPAQUE, op.spec)
            op.factor = attribute(node, "alpha")
        elif kind is Kind.REDUCE:
            op.axes = () if row.axes is None else row.axes(node, len(shapes[0] or ()), self._given_axes(node))
            op.norm = None if row.norm is None else row.norm(node)
        elif kind is Kind.LINEAR:
            op.weight_axes = (1, 0) if attribute(node, "transB", 0) or Role.CONVOLUTION in row.role else (0, 1)
        elif kind is Kind.ATTENTION:
            op.attention = attention_spec(node, shapes, [self.facts.dtypes.get(v) == ir.DataType.BOOL for v in node.inputs])
        if kind is Kind.CHANNELWISE or Role.CONVOLUTION in row.role:
            op.axis = 1
        op.macs = macs_of(op, self.facts.shapes.get) // self.batch
        return op

    def _given_axes(self, node: ir.Node) -> list[int] | None:
        """Those of a reduction that are an input."""
        known = self.facts.data.get(node.inputs[1]) if len(node.inputs) > 1 else None
        return None if known is None or known.dtype.kind not in "iu" else [int(a) for a in known.ravel()]
