"""Fewer tokens, in plain ONNX operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir as ir

from ...system.errors import CannotShrink
from .. import Op, Value
from .facts import RANDOM, evaluate
from .pen import OnnxPen

if TYPE_CHECKING:
    from .adapter import OnnxGraph
    from .facts import Facts


LARGE = 1 << 25  # elements of a mask that is worked out


class OnnxTokens:
    """The verbs of the protocol that merge tokens."""

    graph: ir.Graph
    model: ir.Model
    ops: list[Op]
    outputs: frozenset[Any]
    facts: Facts
    opsets: Any
    varies: Any
    constant: Any
    is_constant: Any
    size_at_runtime: Any
    provider: str
    _emit: Callable[..., ir.Value]
    _insert: Callable[..., list[ir.Value]]
    _constant_input: Callable[[Sequence[int], str], ir.Value]
    _name: Callable[[str], str]
    _users: dict[Value, list[tuple[Op, int]]]
    _order: dict[ir.Node, int]

    def pick(self, value: Value, axis: int, index: np.ndarray, like: Op) -> Value:
        numbers = self._constant_input(index.tolist(), "tokens")
        return self._emit("Gather", [value, numbers], like, axis=axis)

    def pick_output(self, value: Value, axis: int, index: np.ndarray | Value) -> None:
        out: Any = value
        new = ir.Value(name=self._name("whole"), type=out.type, shape=out.shape)
        for i, given in enumerate(self.graph.outputs):
            if given is out:
                self.graph.outputs[i] = new
        if isinstance(index, np.ndarray):
            numbers = self._constant_input(index.tolist(), "tokens")
            self.graph.append(ir.node("Gather", [out, numbers], {"axis": axis}, outputs=[new]))
        else:
            if axis != 1 or len(self.facts.shapes[out]) != 3:
                raise CannotShrink("tokens: an output has tokens merged at run time, on another axis than its second")
            column = ir.Value(name=self._name("tokens"), type=ir.TensorType(ir.DataType.INT64))
            assert isinstance(index, ir.Value)
            self.graph.append(ir.node("Unsqueeze", [index, self._constant_input([2], "axis")], outputs=[column]))
            self.graph.append(ir.node("GatherND", [out, column], {"batch_dims": 1}, outputs=[new]))
        out.name, new.name = new.name, out.name
        out.shape = None

    def weigh_keys(self, op: Op, plus: Value) -> None:
        spec = op.attention
        if spec is None:
            op.node.replace_input_with(0, self._emit("Add", [op.node.inputs[0], plus], op))
            return
        slot = spec.masks[0]
        while len(op.node.inputs) <= slot:
            op.node.resize_inputs(slot + 1)
        known = op.node.inputs[slot]
        if known is not None and self.facts.dtypes.get(known) == ir.DataType.BOOL:
            raise CannotShrink(f"tokens: {op} has a mask of booleans, to which sizes can not be added")
        op.node.replace_input_with(slot, plus if known is None else self._emit("Add", [known, plus], op))

    def pen(self, before: Op, like: Value) -> OnnxPen:
        return OnnxPen(self, before, like)

    def rewire(self, value: Value, made: Value, but: Sequence[ir.Node]) -> None:
        assert isinstance(value, ir.Value) and isinstance(made, ir.Value)
        for use in list(value.uses()):
            if use.node not in but:
                use.node.replace_input_with(use.idx, made)

    def given(self, name: str, like: Value, count: int) -> Value:
        images: Any = self.facts.shapes[like][0]
        if self.varies(like)[0]:
            long = self.size_at_runtime(like, 0)
            images = None if long is None else long.of.shape[long.axis]
        value = ir.Value(name=name, shape=ir.Shape([images, count]), type=ir.TensorType(ir.DataType.INT64))
        self.graph.inputs.append(value)
        return value

    def without_idle_masks(self) -> OnnxGraph:
        idle = [(op, slot) for op in self.ops if op.attention for slot in op.attention.masks if self._idle(op, slot)]
        for op, slot in idle:
            op.node.replace_input_with(slot, None)
        sums = [(op, slot) for op in self.ops if op.type == "Add" for slot in (0, 1) if self._adds_nothing(op, slot)]
        for op, slot in sums:
            ir.convenience.replace_all_uses_with(op.node.outputs[0], op.node.inputs[1 - slot])
            self.graph.remove(op.node, safe=True)
        return self.reopened() if idle or sums else cast("OnnxGraph", self)

    def _adds_nothing(self, op: Op, slot: int) -> bool:
        """A mask of zeros for pairs of tokens."""
        known: Any = self.facts.shapes
        other, out, mask = (known.get(v, ()) for v in (op.inputs[1 - slot], op.outputs[0], op.inputs[slot]))
        pairs = len(mask) > 2 and mask[-2] == mask[-1] > 1 and op.outputs[0] not in self.outputs
        return pairs and other == out and self._idle(op, slot)

    def _idle(self, op: Op, slot: int) -> bool:
        value: Any = op.inputs[slot] if slot < len(op.inputs) else None
        made = None if value is None else self._computed(value, {})
        return made is not None and bool(made.all() if made.dtype == bool else not made.any())

    def _computed(self, value: ir.Value, known: dict[ir.Value, np.ndarray | None]) -> np.ndarray | None:
        """What a value is for the sizes the graph is looked at with; None unless sizes and constants alone make it."""
        if value not in known:
            node, known[value] = value.producer(), None
            if value in self.facts.data:
                known[value] = self.facts.data[value]
            elif self.is_constant(value):
                known[value] = self.constant(value)
            elif node is not None and node.op_type not in RANDOM and math.prod(self.facts.shapes.get(value, (LARGE,))) < LARGE:
                wanted = [v for v in node.inputs if v is not None]
                given = [array for v in wanted if (array := self._computed(v, known)) is not None]
                if given and len(given) == len(wanted):
                    known[value] = evaluate(node, given, self.opsets)[node.outputs.index(value)]
        return known[value]

    def reopened(self) -> OnnxGraph:
        from .adapter import OnnxGraph

        return OnnxGraph(self.model, self.provider)
