"""An ONNX graph, changed: new constants, other wires, and what must be patched in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...system.errors import CannotShrink
from ...system.vocabulary import Operand
from .. import Kind, Op, Role, Value
from .builder import OnnxBuilder
from .inference import fewest
from .masks import adds_nothing, is_idle
from .nodes import Nodes
from .operators import operator
from .reader import OnnxReader
from .resize import resize


class OnnxEditor(OnnxReader):
    def __init__(self, model: ir.Model, provider: str = "cpu") -> None:
        super().__init__(model, provider)
        self.nodes = Nodes(self.graph)
        self.biases: dict[Op, tuple[Op, int]] = {}  # those that were inserted
        self.rounded: dict[ir.Value, ir.Value] = {}  # what linears in 8 bits read, in 8 bits

    def builder(self, before: Op, like: Value | None = None) -> OnnxBuilder:
        real = ir.DataType(self.facts.dtypes.get(like, 1))
        return OnnxBuilder(self.nodes, before, real, self.graph.opset_imports.get("", 1))

    def operand(self, op: Op, slot: int) -> Value:
        value: Value = op.node.inputs[slot]
        return value

    # ---- constants -------------------------------------------------------------------------------------------------

    def set_constant(self, op: Op, slot: int, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        """Give this one operand new numbers. Other users of the old constant keep the old one."""
        old: Operand = op.inputs[slot]
        if op.kind is Kind.CHANNELWISE and Role.CONVOLUTION in op.role and slot == 1:
            op.node.attributes["group"] = ir.AttrInt64("group", shape[0])
        dtype = ir.DataType(self.facts.dtypes[old])

        def evaluated() -> ir.TensorProtocol:
            array = make()
            if array.shape != tuple(shape):
                raise CannotShrink(f"{op}: operand {slot} became {array.shape}, expected {tuple(shape)}")
            return ir.Tensor(np.ascontiguousarray(array.astype(dtype.numpy(), copy=False)), dtype=dtype)

        alone = len(old.uses()) == 1 and old in self.tensors and not old.is_graph_input()
        name = str(old.name) if alone else self.nodes.fresh(str(old.name or op.name))
        tensor = ir.LazyTensor(evaluated, dtype=dtype, shape=ir.Shape(shape), name=name)
        if alone:
            old.const_value, old.shape = tensor, ir.Shape(shape)
            return
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
        self.graph.register_initializer(value)
        op.node.replace_input_with(slot, value)

    def insert_bias(self, op: Op) -> tuple[Op, int]:
        if op not in self.biases:
            self.biases[op] = self._new_bias(op)
        return self.biases[op]

    def _new_bias(self, op: Op) -> tuple[Op, int]:
        """Gemm and Conv take one as an input; behind a MatMul it is an Add."""
        out = op.outputs[0]
        assert isinstance(out, ir.Value)
        dtype = ir.DataType(self.facts.dtypes[out])
        width = (self.facts.shapes[out][op.axis],)
        bias = self.nodes.hold(np.zeros(width), f"{op.path or op.name}.bias", dtype)
        self.facts.shapes[bias], self.facts.dtypes[bias] = width, int(dtype)
        self.constants.add(bias)
        assert bias.const_value is not None
        self.tensors[bias] = bias.const_value
        if op.type in ("Gemm", "Conv"):
            op.node.resize_inputs(3)
            op.node.replace_input_with(2, bias)
            op.inputs = [*op.inputs[:2], bias]
            return op, 2
        stem = self.nodes.fresh(f"{op.path or op.name}/Add")
        new = ir.Value(name=f"{stem}_0", type=out.type, shape=out.shape)
        ir.convenience.replace_all_uses_with(out, new, replace_graph_outputs=True)
        node = ir.Node("", "Add", [out, bias], outputs=[new], name=stem, metadata_props=dict(op.node.metadata_props))
        self.graph.insert_after(op.node, node)
        if new.is_graph_output():
            out.name, new.name = f"{stem}_in", out.name
        return Op(Kind.ELEMENTWISE, "Add", stem, op.path, [out, bias], [new], node, Role.ADD, effect="affine"), 1

    # ---- wires -----------------------------------------------------------------------------------------------------

    def replace(self, old: Value, new: Value) -> None:
        """All users of `old`, those that only read its size included, use `new`; an output keeps its name and its face."""
        assert isinstance(old, ir.Value) and isinstance(new, ir.Value)
        ends = old.is_graph_output()
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        if ends:
            name, old.name = old.name, f"{old.name}_before"
            new.name, new.type, new.shape, new.doc_string = name, old.type, old.shape, old.doc_string
            new.metadata_props.update(old.metadata_props)

    def redirect(self, op: Op, slot: int, value: Value) -> None:
        op.node.replace_input_with(slot, value)

    def rewire(self, value: Value, made: Value, but: Sequence[ir.Node]) -> None:
        assert isinstance(value, ir.Value) and isinstance(made, ir.Value)
        for use in list(value.uses()):
            if use.node not in but:
                use.node.replace_input_with(use.idx, made)

    def add_input(self, name: str, count: int, like: Value | None = None) -> Value:
        images: Operand = f"{name}_rows" if like is None else self.shape(like)[0]
        if like is not None and self.varies(like)[0]:
            found: Operand = self.size_at_runtime(like, 0)
            images = None if found is None else found.of.shape[found.axis]
        value = ir.Value(name=name, shape=ir.Shape([images, count]), type=ir.TensorType(ir.DataType.INT64))
        self.graph.inputs.append(value)
        return value

    def pick_output(self, value: Value, axis: int, index: np.ndarray | Value) -> None:
        out: Operand = value
        new = ir.Value(name=self.nodes.fresh("whole"), type=out.type, shape=out.shape)
        for i, given in enumerate(self.graph.outputs):
            if given is out:
                self.graph.outputs[i] = new
        if isinstance(index, np.ndarray):
            numbers = self.nodes.positions(index.tolist(), "tokens")
            self.graph.append(ir.node("Gather", [out, numbers], {"axis": axis}, outputs=[new]))
        else:
            if axis != 1 or len(self.facts.shapes[out]) != 3:
                raise CannotShrink("tokens: an output has tokens merged at run time, on another axis than its second")
            column = ir.Value(name=self.nodes.fresh("tokens"), type=ir.TensorType(ir.DataType.INT64))
            assert isinstance(index, ir.Value)
            self.graph.append(ir.node("Unsqueeze", [index, self.nodes.positions([2], "axis")], outputs=[column]))
            self.graph.append(ir.node("GatherND", [out, column], {"batch_dims": 1}, outputs=[new]))
        out.name, new.name = new.name, out.name
        out.shape = None

    # ---- single nodes ----------------------------------------------------------------------------------------------

    def resize(self, op: Op, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> None:
        """Patch the sizes and positions a shape node carries; arrays are what is left of its inputs and outputs."""
        resize(operator(op.type).resize, self, self.nodes, op, before, after)

    def set_attention(self, op: Op, heads: int, kv_heads: int, scale: float) -> None:
        node, spec = op.node, op.attention
        node.attributes["scale"] = ir.AttrFloat32("scale", scale)
        if node.op_type == "MultiHeadAttention":
            node.attributes["num_heads"] = ir.AttrInt64("num_heads", heads)
        elif spec is not None and spec.layouts[0] == "bn(hd)":
            node.attributes["q_num_heads"] = ir.AttrInt64("q_num_heads", heads)
            node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", kv_heads)

    def add_to_scores(self, op: Op, plus: Value) -> None:
        spec, builder = op.attention, self.builder(op)
        if spec is None:
            op.node.replace_input_with(0, builder.add(op.node.inputs[0], plus))
            return
        slot = spec.masks[0]
        while len(op.node.inputs) <= slot:
            op.node.resize_inputs(slot + 1)
        known = op.node.inputs[slot]
        if known is not None and self.facts.dtypes.get(known) == ir.DataType.BOOL:
            raise CannotShrink(f"tokens: {op} has a mask of booleans, to which sizes can not be added")
        op.node.replace_input_with(slot, plus if known is None else builder.add(known, plus))

    def quantize(self, op: Op, read: tuple[float, int, int], weight: np.ndarray, scales: np.ndarray) -> None:
        """A linear reads and holds 8-bit numbers: `read` is scale, zero and the least number; `weight` is int8 [in, out]."""
        value = op.inputs[0]
        assert isinstance(value, ir.Value)
        insert, hold = self.nodes.insert, self.nodes.hold
        if value not in self.rounded:
            scale, zero, least = read
            kind = np.uint8 if least == 0 else np.int8
            grid = [hold(np.float32(scale), "scale"), hold(kind(zero), "zero")]
            of = ir.DataType.UINT8 if least == 0 else ir.DataType.INT8
            small = insert("QuantizeLinear", [value, *grid], op, of=of)
            self.rounded[value] = insert("DequantizeLinear", [*small, *grid], op, of=ir.DataType.FLOAT)[0]
        op.node.replace_input_with(0, self.rounded[value])
        numbers = np.ascontiguousarray(weight if op.weight_axes == (0, 1) else weight.T)
        held = [hold(a, "weight") for a in (numbers, scales, np.zeros(len(scales), np.int8))]
        axis = op.weight_axes[1]
        op.node.replace_input_with(1, insert("DequantizeLinear", held, op, of=ir.DataType.FLOAT, axis=axis)[0])

    # ---- the whole graph -------------------------------------------------------------------------------------------

    def without_idle_masks(self) -> Self:
        idle = [(op, slot) for op in self.ops if op.attention for slot in op.attention.masks if is_idle(self, op, slot)]
        for op, slot in idle:
            op.node.replace_input_with(slot, None)
        sums = [(op, slot) for op in self.ops if Role.ADD in op.role for slot in (0, 1) if adds_nothing(self, op, slot)]
        for op, slot in sums:
            ir.convenience.replace_all_uses_with(op.node.outputs[0], op.node.inputs[1 - slot])
            self.graph.remove(op.node, safe=True)
        return self.reopened() if idle or sums else self

    def reopened(self) -> Self:
        return type(self)(self.model, self.provider)

    def finish(self) -> None:
        """Fold what is known, drop what is dead, forget the shapes that are no longer true."""
        for value, array in self.folded.items():
            if value.uses() and value.producer() is not None:
                held = self.nodes.hold(array, str(value.name))
                for node, slot in tuple(value.uses()):  # and not where it is an output
                    node.replace_input_with(slot, held)
        RemoveUnusedNodesPass()(self.model)
        for node in self.graph.all_nodes():  # it takes empty inputs from the end, those that have to be there as well
            node.resize_inputs(max(len(node.inputs), fewest(node, self.model.graph.opset_imports)))
        outputs = set(self.graph.outputs)
        for node in self.graph:
            for value in node.outputs:
                if value not in outputs and value not in self.facts.declared:
                    value.shape = None
