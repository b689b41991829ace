"""Writing side of the ONNX adapter: new constants, new shape nodes, and what must be patched in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...system.errors import CannotShrink
from .. import Dim, Kind, Op, Value
from .inference import fewest

if TYPE_CHECKING:
    from .facts import Facts


class OnnxEdits:
    """The verbs of the protocol that change the graph. New nodes stand right before the op they are made for."""

    model: ir.Model
    graph: ir.Graph
    facts: Facts
    push: Callable[..., list[np.ndarray]]
    shape: Callable[[Any], tuple[int, ...]]
    varies: Callable[[Any], tuple[bool, ...]]
    _users: dict[Value, list[tuple[Op, int]]]
    _tensors: dict[ir.Value, ir.TensorProtocol]
    _folded: dict[ir.Value, np.ndarray]
    _constants: set[ir.Value]
    _counter = 0
    _biases: dict[Op, tuple[Op, int]]
    _rounded: dict[ir.Value, ir.Value]
    _taken: set[str | None] | None = None

    def _name(self, stem: str) -> str:
        """A fresh name: never one that the file already uses."""
        if self._taken is None:
            self._taken = {v.name for n in self.graph for v in n.outputs} | {n.name for n in self.graph}
            self._taken |= {v.name for v in self.graph.inputs} | set(self.graph.initializers)
        while True:
            self._counter += 1
            name = f"{stem}_toastc_{self._counter}"
            if name not in self._taken:
                self._taken.add(name)
                return name

    def set_constant(self, op: Op, slot: int, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        """Give this one operand new numbers. Other users of the old constant keep the old one."""
        old: Any = op.inputs[slot]
        dtype = ir.DataType(self.facts.dtypes[old])

        def evaluate() -> ir.TensorProtocol:
            array = make()
            if array.shape != tuple(shape):
                raise CannotShrink(f"{op}: operand {slot} became {array.shape}, expected {tuple(shape)}")
            return ir.Tensor(np.ascontiguousarray(array.astype(dtype.numpy(), copy=False)), dtype=dtype)

        uses = old.uses()
        alone = len(uses) == 1 and old in self._tensors and not old.is_graph_input()
        name = str(old.name) if alone else self._name(str(old.name or op.name))
        tensor = ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(shape), name=name)
        if alone:
            old.const_value, old.shape = tensor, ir.Shape(shape)
            return
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
        self.graph.register_initializer(value)
        op.node.replace_input_with(slot, value)

    def _held(self, array: np.ndarray | np.generic, stem: str, dtype: ir.DataType | None = None) -> ir.Value:
        """Numbers that the file carries, under a fresh name."""
        tensor = ir.tensor(
            array if dtype is None else np.ascontiguousarray(array, dtype.numpy()), dtype=dtype, name=self._name(stem)
        )
        shape, kind = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        value = ir.Value(name=tensor.name, shape=shape, type=kind, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def _constant_input(self, numbers: Sequence[int] | np.ndarray, stem: str) -> ir.Value:
        return self._held(np.array(numbers, np.int64), stem)

    def _insert(
        self,
        kind: str,
        inputs: Sequence[Any],
        like: Op,
        outputs: int = 1,
        of: ir.DataType | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> list[ir.Value]:
        stem = self._name(f"{like.path or like.name or 'graph'}/{kind}")
        made = [ir.Value(name=f"{stem}_{i}", type=ir.TensorType(of) if of else inputs[0].type) for i in range(outputs)]
        node = ir.Node(
            domain, kind, inputs, ir.convenience.convert_attributes(attributes), outputs=made, name=stem,
            metadata_props=dict(like.node.metadata_props),
        )  # fmt: skip
        self.graph.insert_before(like.node, node)
        return made

    def split(self, value: Value, sizes: Sequence[int], like: Op) -> list[Value]:
        numbers = self._constant_input(list(sizes), "split")
        return list(self._insert("Split", [value, numbers], like, outputs=len(sizes), axis=-1))

    def transpose(self, value: Value, perm: Sequence[int], like: Op) -> Value:
        return self._insert("Transpose", [value], like, perm=list(perm))[0]

    def reshape(self, value: Value, dims: Sequence[int | Dim], shape: Sequence[int], like: Op) -> Value:
        """`0` copies the size of the same axis; one size may be inferred; further ones are read at run time."""
        numbers = [d if isinstance(d, int) else 0 if d.of is None and d.axis == i else -1 for i, d in enumerate(dims)]
        if numbers.count(-1) <= 1:
            return self._insert("Reshape", [value, self._constant_input(numbers, "shape")], like)[0]
        parts = []
        for d in dims:
            if isinstance(d, Dim):
                sizes = self._insert("Shape", [d.of or value], like, of=ir.DataType.INT64)
                index = self._constant_input([d.axis], "axis")
                parts += self._insert("Gather", [*sizes, index], like, of=ir.DataType.INT64, axis=0)
            else:
                parts.append(self._constant_input([d], "size"))
        target = self._insert("Concat", parts, like, axis=0)[0]
        return self._insert("Reshape", [value, target], like)[0]

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

    def resize(self, op: Op, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> None:
        """Patch the sizes and positions a shape node carries; arrays are what is left of its inputs and outputs."""
        from .resize import resize

        resize(self, op, before, after)

    def insert_bias(self, op: Op) -> tuple[Op, int]:
        if op not in self._biases:
            self._biases[op] = self._new_bias(op)
        return self._biases[op]

    def _new_bias(self, op: Op) -> tuple[Op, int]:
        """Gemm takes one as an input; behind a MatMul it is an Add."""
        out = op.outputs[0]
        assert isinstance(out, ir.Value)
        dtype = ir.DataType(self.facts.dtypes[out])
        bias = self._held(np.zeros(self.facts.shapes[out][-1:]), f"{op.path or op.name}.bias", dtype)
        self.facts.shapes[bias], self.facts.dtypes[bias] = self.facts.shapes[out][-1:], int(dtype)
        self._constants.add(bias)
        assert bias.const_value is not None
        self._tensors[bias] = bias.const_value
        if op.type == "Gemm":
            op.node.resize_inputs(3)
            op.node.replace_input_with(2, bias)
            op.inputs = [*op.inputs[:2], bias]
            return op, 2
        stem = self._name(f"{op.path or op.name}/Add")
        new = ir.Value(name=f"{stem}_0", type=out.type, shape=out.shape)
        ir.convenience.replace_all_uses_with(out, new, replace_graph_outputs=True)
        node = ir.Node("", "Add", [out, bias], outputs=[new], name=stem, metadata_props=dict(op.node.metadata_props))
        self.graph.insert_after(op.node, node)
        if new.is_graph_output():
            out.name, new.name = f"{stem}_in", out.name
        return Op(Kind.ELEMENTWISE, "Add", stem, op.path, [out, bias], [new], node, effect="affine"), 1

    def set_attention(self, op: Op, heads: int, kv_heads: int, scale: float) -> None:
        node, spec = op.node, op.attention
        node.attributes["scale"] = ir.AttrFloat32("scale", scale)
        if node.op_type == "MultiHeadAttention":
            node.attributes["num_heads"] = ir.AttrInt64("num_heads", heads)
        elif spec is not None and spec.layouts[0] == "bn(hd)":
            node.attributes["q_num_heads"] = ir.AttrInt64("q_num_heads", heads)
            node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", kv_heads)

    def quantize(self, op: Op, read: tuple[float, int, int], weight: np.ndarray, scales: np.ndarray) -> None:
        """A linear reads and holds 8-bit numbers: `read` is scale, zero and the least number; `weight` is int8 [in, out]."""
        value = op.inputs[0]
        assert isinstance(value, ir.Value)
        if value not in self._rounded:
            scale, zero, least = read
            kind = np.uint8 if least == 0 else np.int8
            grid = [self._held(np.float32(scale), "scale"), self._held(kind(zero), "zero")]
            of = ir.DataType.UINT8 if least == 0 else ir.DataType.INT8
            small = self._insert("QuantizeLinear", [value, *grid], op, of=of)
            self._rounded[value] = self._insert("DequantizeLinear", [*small, *grid], op, of=ir.DataType.FLOAT)[0]
        op.node.replace_input_with(0, self._rounded[value])
        numbers = np.ascontiguousarray(weight if op.weight_axes == (0, 1) else weight.T)
        held = [self._held(a, "weight") for a in (numbers, scales, np.zeros(len(scales), np.int8))]
        axis = op.weight_axes[1]
        op.node.replace_input_with(1, self._insert("DequantizeLinear", held, op, of=ir.DataType.FLOAT, axis=axis)[0])

    def attend(self, qkv: Sequence[Value], bias: Value | None, heads: int, scale: float, like: Op) -> Value:
        """One node, before an op: rows [batch, tokens, heads * width] to rows; `bias` is [images|1, heads|1, queries, keys]."""
        self.graph.opset_imports.setdefault("com.microsoft", 1)
        inputs = [*qkv] if bias is None else [*qkv, None, None, bias]
        return self._insert("MultiHeadAttention", inputs, like, domain="com.microsoft", num_heads=heads, scale=float(scale))[0]

    def finish(self) -> None:
        """Fold what is known, drop what is dead, forget the shapes that are no longer true."""
        for value, array in self._folded.items():
            if value.uses() and value.producer() is not None:
                held = self._held(array, str(value.name))
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
