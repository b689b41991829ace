"""New nodes of plain ONNX operators, and of ONNX Runtime's own attention."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Self

import numpy as np
import onnx_ir as ir

from ...system.vocabulary import Operand
from .. import Dim, Op, Value
from .nodes import Nodes

INT64 = ir.DataType.INT64


class OnnxBuilder:
    """Draws before an op; numbers that are not whole have the type `real`."""

    def __init__(self, nodes: Nodes, op: Op, real: ir.DataType, opset: int) -> None:
        self.nodes, self.op, self.real, self.opset = nodes, op, real, opset
        self.drawn: list[ir.Node | None] = []

    # ---- numbers -----------------------------------------------------------------------------------------------

    def wide(self) -> Self:
        if self.real.itemsize > 2:
            return self
        made = copy(self)
        made.real = ir.DataType.FLOAT
        return made

    def again(self, op: Op, inputs: Sequence[Value | None]) -> ir.Value:
        more = op.node.inputs[len(op.inputs) :]  # sizes and axes
        attributes = {name: a.value for name, a in op.node.attributes.items()}
        return self.one(op.node.op_type, *inputs, *more, of=op.node.outputs[0].dtype, domain=op.node.domain, **attributes)

    def constant(self, numbers: np.ndarray) -> ir.Value:
        return self.nodes.hold(numbers, "numbers", INT64 if numbers.dtype.kind in "iu" else self.real)

    def held(self, x: Value | np.ndarray) -> Value:
        return self.constant(x) if isinstance(x, np.ndarray) else x

    def sizes(self, *numbers: int, stem: str = "axes") -> ir.Value:
        return self.nodes.positions(list(numbers), stem)

    def draw(
        self, kind: str, *inputs: Operand, outputs: int = 1, of: ir.DataType | None = None, **attributes: Operand
    ) -> list[ir.Value]:
        made = self.nodes.insert(kind, inputs, self.op, outputs=outputs, of=of, **attributes)
        self.drawn.append(made[0].producer())
        return made

    def one(self, kind: str, *inputs: Operand, of: ir.DataType | None = None, **attributes: Operand) -> ir.Value:
        return self.draw(kind, *inputs, of=of, **attributes)[0]

    # ---- element by element ----------------------------------------------------------------------------------------

    def add(self, a: Value, b: Value | np.ndarray) -> ir.Value:
        return self.one("Add", a, self.held(b))

    def sub(self, a: Value, b: Value | np.ndarray) -> ir.Value:
        return self.one("Sub", a, self.held(b))

    def mul(self, a: Value, b: Value | np.ndarray) -> ir.Value:
        return self.one("Mul", a, self.held(b))

    def div(self, a: Value, b: Value | np.ndarray) -> ir.Value:
        return self.one("Div", a, self.held(b))

    def sqrt(self, x: Value) -> ir.Value:
        return self.one("Sqrt", x)

    def log(self, x: Value) -> ir.Value:
        return self.one("Log", x)

    def abs(self, x: Value) -> ir.Value:
        return self.one("Abs", x)

    def equal(self, x: Value, numbers: np.ndarray) -> ir.Value:
        return self.cast(self.one("Equal", x, self.constant(numbers), of=ir.DataType.BOOL))

    def cast(self, x: Value) -> ir.Value:
        return self.one("Cast", x, of=self.real, to=int(self.real))

    # ---- sums and products ---------------------------------------------------------------------------------------

    def softmax(self, x: Value) -> ir.Value:
        return self.one("Softmax", x, axis=-1)

    def sum(self, x: Value, axis: int) -> ir.Value:
        return self.one("ReduceSum", x, self.sizes(axis), keepdims=0)

    def mean(self, x: Value, axis: int, keep: bool = False) -> ir.Value:
        if self.opset < 18:
            return self.one("ReduceMean", x, axes=[axis], keepdims=int(keep))
        return self.one("ReduceMean", x, self.sizes(axis), keepdims=int(keep))

    def cumsum(self, x: Value) -> ir.Value:
        return self.one("CumSum", x, self.sizes(1))

    def matmul(self, a: Value, b: Value) -> ir.Value:
        return self.one("MatMul", a, b)

    def topk(self, x: Value, count: int, axis: int) -> tuple[ir.Value, ir.Value]:
        values, index = self.draw("TopK", x, self.sizes(count), outputs=2, axis=axis)
        index.type = ir.TensorType(INT64)
        return values, index

    def one_hot(self, index: Value, depth: int) -> ir.Value:
        return self.sum(self.one("OneHot", index, self.sizes(depth), self.sizes(0, 1), of=INT64, axis=-1), 1)

    # ---- rearrangements --------------------------------------------------------------------------------------------

    def transpose(self, x: Value, perm: Sequence[int]) -> ir.Value:
        return self.one("Transpose", x, perm=list(perm))

    def unsqueeze(self, x: Value, axis: int) -> ir.Value:
        return self.one("Unsqueeze", x, self.sizes(axis))

    def split(self, x: Value, sizes: Sequence[int]) -> list[Value]:
        return list(self.draw("Split", x, self.sizes(*sizes, stem="split"), outputs=len(sizes), axis=-1))

    def reshape(self, x: Value, dims: Sequence[int | Dim]) -> ir.Value:
        """`0` copies the size of the same axis; one size may be inferred; further ones are read at run time."""
        numbers = [d if isinstance(d, int) else 0 if d.of is None and d.axis == i else -1 for i, d in enumerate(dims)]
        if numbers.count(-1) <= 1:
            return self.one("Reshape", x, self.sizes(*numbers, stem="shape"))
        parts = [
            self.size(x if d.of is None else d.of, d.axis) if isinstance(d, Dim) else self.sizes(d, stem="size") for d in dims
        ]
        return self.one("Reshape", x, self.one("Concat", *parts, axis=0))

    def size(self, x: Value, axis: int) -> ir.Value:
        """Of an axis, in a row of one number."""
        sizes = self.one("Shape", x, of=INT64)
        return self.one("Gather", sizes, self.sizes(axis, stem="axis"), of=INT64, axis=0)

    def repeat(self, x: Value, like: Value) -> ir.Value:
        own, whole = (self.one("Shape", v, of=INT64, start=0, end=1) for v in (x, like))
        ones = self.constant(np.ones(3, np.int64))
        times = self.one("Concat", self.one("Div", whole, own, of=INT64), ones, of=INT64, axis=0)
        return self.one("Tile", x, times)

    # ---- picking -----------------------------------------------------------------------------------------------------

    def take(self, x: Value, index: np.ndarray, axis: int) -> ir.Value:
        return self.one("Gather", x, self.nodes.positions(index, "tokens"), axis=axis)

    def gather(self, x: Value, index: Value, axis: int) -> ir.Value:
        return self.one("Gather", x, index, axis=axis)

    def gather_rows(self, table: Value | np.ndarray, index: Value) -> ir.Value:
        held = self.sizes(*table.tolist()) if isinstance(table, np.ndarray) else table
        return self.one("Gather", held, index, axis=0)

    def gather_along(self, x: Value, index: Value) -> ir.Value:
        return self.one("GatherElements", x, index, axis=1)

    def gather_tokens(self, x: Value, index: Value) -> ir.Value:
        return self.one("GatherND", x, self.unsqueeze(index, 2), batch_dims=1)

    def gather_channels(self, x: Value, index: Value) -> ir.Value:
        one = self.sizes(1, stem="one")
        wide = self.unsqueeze(index, 1)
        sizes = self.one("Concat", one, self.size(x, 1), one, of=INT64, axis=0)
        return self.one("GatherElements", x, self.one("Expand", wide, sizes, of=INT64), axis=2)

    # ---- whole attentions, names -------------------------------------------------------------------------------------

    def attend(self, qkv: Sequence[Value], bias: Value | None, heads: int, scale: float) -> ir.Value:
        """Rows [batch, tokens, heads * width] to rows; `bias` is [images|1, heads|1, queries, keys]."""
        self.nodes.graph.opset_imports.setdefault("com.microsoft", 1)
        inputs = [*qkv] if bias is None else [*qkv, None, None, bias]
        return self.one("MultiHeadAttention", *inputs, domain="com.microsoft", num_heads=heads, scale=float(scale))

    def name(self, x: Value, name: str) -> None:
        assert isinstance(x, ir.Value)
        x.name = name
