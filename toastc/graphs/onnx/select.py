"""Choosing channels at run time, in plain ONNX operators.

x [B, N, C] -> the sampled tokens -> |x|, weighted by the class token's attention -> mean -> TopK -> which
image:  GatherElements(x, which) [B, N, k]  MatMul  Gather(W, which) [B, k, out]
batch:  Gather(x, which)         [B, N, k]  MatMul  Gather(W, which)    [k, out]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ...system.errors import CannotShrink
from .. import Guide, Op, Selection, Value

if TYPE_CHECKING:
    from .facts import Facts


class OnnxSelects:
    """The verbs of the protocol that have channels chosen at run time."""

    graph: ir.Graph
    model: ir.Model
    facts: Facts
    _insert: Callable[..., list[ir.Value]]
    _constant_input: Callable[[Sequence[int], str], ir.Value]
    _name: Callable[[str], str]
    _attended: dict[Op, ir.Value]

    def take(self, ops: Sequence[Op], index: np.ndarray) -> None:
        numbers = self._constant_input(index.tolist(), "kept")
        read = self._emit("Gather", [ops[0].node.inputs[0], numbers], ops[0], axis=-1)
        for op in ops:
            op.node.replace_input_with(0, read)

    def select(self, op: Op, selection: Selection) -> Value:
        x: ir.Value = op.node.inputs[0]
        shape = self.facts.shapes[x]
        if len(shape) < 3:
            raise CannotShrink(f"{op}: the tokens of all images stand on one axis; which image they are of can not be told")
        if len(shape) > 3:
            x = self._emit("Reshape", [x, self._constant_input([0, -1, shape[-1]], "flat")], op)
        which = self._which(op, x, selection)
        weight, (into, _) = op.node.inputs[1], op.weight_axes
        if selection.per == "batch":
            flat = self._emit("Squeeze", [which, self._constant_input([0], "axis")], op, of=ir.DataType.INT64)
            read = self._emit("Gather", [op.node.inputs[0], flat], op, axis=-1)
            rows = self._emit("Gather", [weight, flat], op, axis=into)
            rows = rows if into == 0 else self._emit("Transpose", [rows], op, perm=[1, 0])
            made = self._emit("MatMul", [read, rows], op)
        else:
            wide = self._emit("Unsqueeze", [which, self._constant_input([1], "axis")], op, of=ir.DataType.INT64)
            sizes = self._emit("Shape", [x], op, of=ir.DataType.INT64)
            tokens = self._emit("Gather", [sizes, self._position(1)], op, of=ir.DataType.INT64, axis=0)
            one = self._constant_input([1], "one")
            size = self._emit("Concat", [one, tokens, one], op, of=ir.DataType.INT64, axis=0)
            read = self._emit("GatherElements", [x, self._emit("Expand", [wide, size], op, of=ir.DataType.INT64)], op, axis=2)
            weight = weight if into == 0 else self._emit("Transpose", [weight], op, perm=[1, 0])
            made = self._emit("MatMul", [read, self._emit("Gather", [weight, which], op, axis=0)], op)
            if len(shape) > 3:
                made = self._unflatten(op, made, shape)
        if len(op.node.inputs) > 2 and op.node.inputs[2] is not None:
            made = self._emit("Add", [made, op.node.inputs[2]], op)
        ir.convenience.replace_all_uses_with(op.node.outputs[0], made, replace_graph_outputs=True)
        return which

    def _unflatten(self, op: Op, made: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """[B, N, out] back to [B, ..., out], with the sizes of the input."""
        every = self._emit("Shape", [op.node.inputs[0]], op, of=ir.DataType.INT64)
        ends = [self._constant_input([n], "end") for n in (0, len(shape) - 1)]
        sizes = self._emit("Slice", [every, *ends], op, of=ir.DataType.INT64)
        target = self._emit("Concat", [sizes, self._constant_input([-1], "rest")], op, of=ir.DataType.INT64, axis=0)
        return self._emit("Reshape", [made, target], op)

    def _which(self, op: Op, x: ir.Value, selection: Selection) -> ir.Value:
        """[images or 1, count]: positions of the channels with the highest scores, the highest first."""
        tokens = self._constant_input(list(selection.tokens), "tokens")
        size = self._emit("Abs", [self._emit("Gather", [x, tokens], op, axis=1)], op)
        if selection.guide is not None:
            attended = self._emit("Gather", [self._attention_of(selection.guide), tokens], op, axis=1)
            column = self._emit("Unsqueeze", [attended, self._constant_input([2], "axis")], op)
            own = self._emit("Abs", [self._emit("Gather", [x, self._position(0, scalar=True)], op, axis=1)], op)
            rest = self._mean(self._emit("Mul", [size, column], op), 1, False, op)
            parts = [self._emit("Mul", [v, self._number(w, v)], op) for v, w in zip((own, rest), selection.weights, strict=True)]
            score = self._emit("Add", parts, op)
        else:
            score = self._mean(size, 1, False, op)
        if selection.per == "batch":
            score = self._mean(score, 0, True, op)
        count = self._constant_input([selection.count], "count")
        _, which = self._insert("TopK", [score, count], op, outputs=2, axis=-1)
        which.type, which.name = ir.TensorType(ir.DataType.INT64), selection.name
        return which

    def _attention_of(self, guide: Guide) -> ir.Value:
        """[B, N]: how much the class token attends to every token, the mean over heads."""
        if guide.op not in self._attended:
            op = guide.op
            if guide.slot >= 0:
                row = self._emit("Gather", [op.node.inputs[guide.slot], self._position(0, scalar=True)], op, axis=2)
            else:
                row = self._recomputed(op)
            self._attended[op] = self._mean(row, 1, False, op)
        return self._attended[guide.op]

    def _recomputed(self, op: Op) -> ir.Value:
        """[B, H, N]: the class token's row of softmax(q k'), which a whole attention keeps to itself."""
        spec = op.attention
        assert spec is not None and spec.heads == spec.kv_heads  # as a guide is chosen
        q, k = (self._by_head(op, i, heads) for i, heads in ((0, spec.heads), (1, spec.kv_heads)))
        first = self._emit("Gather", [q, self._constant_input([0], "class")], op, axis=2)
        scores = self._emit("MatMul", [first, self._emit("Transpose", [k], op, perm=[0, 1, 3, 2])], op)
        scaled = self._emit("Mul", [scores, self._number(spec.scale, scores)], op)
        weights = self._emit("Softmax", [scaled], op, axis=-1)
        return self._emit("Squeeze", [weights, self._constant_input([2], "axis")], op)

    def _by_head(self, op: Op, slot: int, heads: int) -> ir.Value:
        assert op.attention is not None
        value, layout = op.node.inputs[slot], op.attention.layouts[slot]
        if layout == "bn(hd)":
            value = self._emit("Reshape", [value, self._constant_input([0, 0, heads, -1], "heads")], op)
        return value if layout == "bhnd" else self._emit("Transpose", [value], op, perm=[0, 2, 1, 3])

    # ---- the same channels, zeroed instead of left out -----------------------------------------------------

    def mask(self, op: Op, slot: int, chosen: Value) -> None:
        x: ir.Value = op.node.inputs[slot]
        shape = self.facts.shapes[op.inputs[slot]]
        depth, ends = self._constant_input([shape[-1]], "depth"), self._constant_input([0, 1], "ends")
        hot = self._emit("OneHot", [chosen, depth, ends], op, of=ir.DataType.INT64, axis=-1)
        some = self._emit("ReduceSum", [hot, self._constant_input([1], "axis")], op, of=ir.DataType.INT64, keepdims=0)
        wide = self._constant_input(list(range(1, len(shape) - 1)), "axes")
        flags = self._emit("Unsqueeze", [some, wide], op, of=ir.DataType.INT64)
        dtype = ir.DataType(self.facts.dtypes[op.inputs[slot]])
        mask = self._emit("Cast", [flags], op, of=dtype, to=int(dtype))
        op.node.replace_input_with(slot, self._emit("Mul", [x, mask], op))

    def chosen(self, name: str, count: int) -> Value:
        value = ir.Value(name=name, shape=ir.Shape([f"{name}_rows", count]), type=ir.TensorType(ir.DataType.INT64))
        self.graph.inputs.append(value)
        return value

    # ---- small things --------------------------------------------------------------------------------------

    def _emit(self, kind: str, inputs: list[Any], like: Op, of: ir.DataType | None = None, **attributes: Any) -> ir.Value:
        return self._insert(kind, inputs, like, of=of, **attributes)[0]

    def _mean(self, value: ir.Value, axis: int, keep: bool, like: Op) -> ir.Value:
        if self.model.graph.opset_imports.get("", 1) < 18:
            return self._emit("ReduceMean", [value], like, axes=[axis], keepdims=int(keep))
        return self._emit("ReduceMean", [value, self._constant_input([axis], "axis")], like, keepdims=int(keep))

    def _position(self, number: int, scalar: bool = False) -> ir.Value:
        value = self._constant_input([number], "index")
        if scalar:
            value.const_value = ir.tensor(np.array(number, np.int64), name=value.name)
            value.shape = ir.Shape([])
        return value

    def _number(self, number: float, like: ir.Value) -> ir.Value:
        dtype = like.dtype or ir.DataType.FLOAT
        tensor = ir.tensor(np.array(number, dtype.numpy()), dtype=dtype, name=self._name("number"))
        value = ir.Value(name=tensor.name, shape=ir.Shape([]), type=ir.TensorType(dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value
