"""`Pen` in ONNX operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .. import Op, Value


class OnnxPen:
    """Draws before an op; numbers that are not whole have the type of `like`."""

    def __init__(self, graph: Any, op: Op, like: Value) -> None:
        self.graph, self.op, self.real = graph, op, ir.DataType(graph.facts.dtypes.get(like, 1))
        self.drawn: list[ir.Node | None] = []

    def _draw(self, kind: str, inputs: Sequence[Any], of: ir.DataType | None, outputs: int, **attributes: Any) -> list[ir.Value]:
        made: list[ir.Value] = self.graph._insert(kind, list(inputs), self.op, outputs=outputs, of=of, **attributes)
        self.drawn.append(made[0].producer())
        return made

    def _emit(self, kind: str, inputs: Sequence[Any], of: ir.DataType | None = None, **attributes: Any) -> ir.Value:
        return self._draw(kind, inputs, of, 1, **attributes)[0]

    def _axes(self, *axes: int) -> ir.Value:
        held: ir.Value = self.graph._constant_input(list(axes), "axes")
        return held

    def number(self, numbers: np.ndarray) -> ir.Value:
        dtype = ir.DataType.INT64 if numbers.dtype.kind in "iu" else self.real
        held: ir.Value = self.graph._held(numbers, "numbers", dtype)
        return held

    def math(self, kind: str, a: Value, b: Value | np.ndarray) -> ir.Value:
        return self._emit(kind.capitalize(), [a, self.number(b) if isinstance(b, np.ndarray) else b])

    def root(self, x: Value) -> ir.Value:
        return self._emit("Sqrt", [x])

    def log(self, x: Value) -> ir.Value:
        return self._emit("Log", [x])

    def total(self, x: Value, axis: int) -> ir.Value:
        return self._emit("ReduceSum", [x, self._axes(axis)], keepdims=0)

    def product(self, a: Value, b: Value) -> ir.Value:
        return self._emit("MatMul", [a, b])

    def turn(self, x: Value, perm: Sequence[int]) -> ir.Value:
        return self._emit("Transpose", [x], perm=list(perm))

    def fold(self, x: Value, dims: Sequence[int]) -> ir.Value:
        return self._emit("Reshape", [x, self._axes(*dims)])

    def widen(self, x: Value, axis: int) -> ir.Value:
        return self._emit("Unsqueeze", [x, self._axes(axis)])

    def take(self, x: Value, index: np.ndarray, axis: int) -> ir.Value:
        return self._emit("Gather", [x, self._axes(*index.tolist())], axis=axis)

    def along(self, x: Value, index: Value) -> ir.Value:
        return self._emit("GatherElements", [x, index], axis=1)

    def look_up(self, table: np.ndarray, index: Value) -> ir.Value:
        return self._emit("Gather", [self._axes(*table.tolist()), index], axis=0)

    def spread(self, x: Value, index: Value) -> ir.Value:
        return self._emit("GatherND", [x, self.widen(index, 2)], batch_dims=1)

    def best(self, x: Value, count: int) -> tuple[ir.Value, ir.Value]:
        values, index = self._draw("TopK", [x, self._axes(count)], None, 2, axis=1)
        index.type = ir.TensorType(ir.DataType.INT64)
        return values, index

    def flags(self, index: Value, depth: int) -> ir.Value:
        hot = self._emit("OneHot", [index, self._axes(depth), self._axes(0, 1)], of=ir.DataType.INT64, axis=-1)
        return self.total(hot, 1)

    def running(self, x: Value) -> ir.Value:
        axis = self._axes(1)
        return self._emit("CumSum", [x, axis])

    def where_equal(self, x: Value, numbers: np.ndarray) -> ir.Value:
        return self.as_real(self._emit("Equal", [x, self.number(numbers)], of=ir.DataType.BOOL))

    def repeated(self, x: Value, like: Value) -> ir.Value:
        of = ir.DataType.INT64
        own, whole = (self._emit("Shape", [v], of=of, start=0, end=1) for v in (x, like))
        ones = self.number(np.ones(3, np.int64))
        times = self._emit("Concat", [self._emit("Div", [whole, own], of=of), ones], of=of, axis=0)
        return self._emit("Tile", [x, times])

    def as_real(self, x: Value) -> ir.Value:
        return self._emit("Cast", [x], of=self.real, to=int(self.real))

    def named(self, x: Value, name: str) -> None:
        assert isinstance(x, ir.Value)
        x.name = name
