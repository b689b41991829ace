"""Attentions and FFNs of given sizes as small ONNX models, to be timed."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...plans.latency import Block
from ...system.vocabulary import Operand

OPSET = 20


class Writer:
    def __init__(self, int8: bool = False) -> None:
        self.int8 = int8
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def constant(self, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Operand) -> list[str]:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def linear(self, value: str, into: int, out: int) -> str:
        if self.int8:
            grid = [self.constant(np.array(0.03, np.float32)), self.constant(np.array(128, np.uint8))]
            held = [self.rng.integers(-127, 128, (into, out), np.int8), np.full(out, 1e-3, np.float32), np.zeros(out, np.int8)]
            (value,) = self.op("DequantizeLinear", *self.op("QuantizeLinear", value, *grid), *grid)
            (weight,) = self.op("DequantizeLinear", *map(self.constant, held), axis=1)
        else:
            weight = self.constant((self.rng.standard_normal((into, out)) / np.sqrt(into)).astype(np.float32))
        (product,) = self.op("MatMul", value, weight)
        return self.op("Add", product, self.constant(np.zeros(out, np.float32)))[0]

    def model(self, result: str) -> bytes:
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [result], ["y"])], "block",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], self.weights,
        )  # fmt: skip
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        written: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        return written


def block_model(block: Block) -> tuple[bytes, np.ndarray]:
    """The model and an input for it."""
    w = Writer(block.int8)
    shape = (block.rows // block.tokens, block.tokens, block.dim)
    given = w.rng.standard_normal(shape).astype(np.float32)
    if block.heads:
        wide = [block.heads * block.qk, block.heads * block.qk, block.heads * block.vo]
        parts = w.op("Split", w.linear("x", block.dim, sum(wide)), w.constant(np.array(wide)), outputs=3, axis=2)
        if block.fused:
            (mixed,) = w.op("MultiHeadAttention", *parts, num_heads=block.heads, scale=0.125, domain="com.microsoft")
            return w.model(w.linear(mixed, wide[2], block.out)), given
        sides = []
        perms = [0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]
        for part, width, perm in zip(parts, (block.qk, block.qk, block.vo), perms, strict=True):
            (split,) = w.op("Reshape", part, w.constant(np.array([0, 0, block.heads, width])))
            sides += w.op("Transpose", split, perm=perm)
        (logits,) = w.op("MatMul", sides[0], sides[1])
        (scaled,) = w.op("Mul", logits, w.constant(np.array(0.125, np.float32)))
        (mixed,) = w.op("MatMul", w.op("Softmax", scaled, axis=-1)[0], sides[2])
        (joined,) = w.op("Reshape", w.op("Transpose", mixed, perm=[0, 2, 1, 3])[0], w.constant(np.array([0, 0, wide[2]])))
        return w.model(w.linear(joined, wide[2], block.out)), given
    hidden = w.linear("x", block.dim, block.hidden)
    (active,) = w.op("Gelu", hidden)
    if block.gated:
        (active,) = w.op("Mul", active, w.linear("x", block.dim, block.hidden))
    return w.model(w.linear(active, block.hidden, block.out)), given
