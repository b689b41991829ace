"""Small ONNX graphs written in ONNX's own text form, with random weights of given shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

Weights = Mapping[str, tuple[int, ...] | np.ndarray]
# Two heads of four channels, and the sizes that the texts below name.
SIZES = {"apart": np.array([0, 0, 2, 4]), "join": np.array([0, 0, 8]), "scale": np.float32(0.5)}
LINEARS: Weights = {"wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "wo": (8, 8)}
HEADS = """
    q0 = MatMul(x, wq)  k0 = MatMul(x, wk)  v0 = MatMul(x, wv)
    q1 = Reshape(q0, apart)  k1 = Reshape(k0, apart)  v1 = Reshape(v0, apart)
    q = Transpose<perm=[0, 2, 1, 3]>(q1)  k = Transpose<perm=[0, 2, 3, 1]>(k1)  v = Transpose<perm=[0, 2, 1, 3]>(v1)
"""
JOINED = "t = Transpose<perm=[0, 2, 1, 3]>(m)  j = Reshape(t, join)  y = MatMul(j, wo)"


def written(
    text: str,
    weights: Weights,
    inputs: str = "float[b, 3, 8] x",
    outputs: str = "float[b, 3, 8] y",
    opset: int = 20,
) -> onnx.ModelProto:
    """A graph of these nodes; a weight given as a shape is drawn, small enough for a softmax to stay soft."""
    rng = np.random.default_rng(0)
    head = f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>'
    model: onnx.ModelProto = parser.parse_model(f"{head} g ({inputs}) => ({outputs}) {{ {text} }}")
    for name, given in weights.items():
        drawn = isinstance(given, tuple)
        array = (rng.standard_normal(given) / 2).astype(np.float32) if drawn else np.asarray(given)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"n{number}"
    return model


def attention(
    between: str, more: Weights | None = None, inputs: str = "float[b, 3, 8] x", heads: str = HEADS, joined: str = JOINED,
    outputs: str = "float[b, 3, 8] y",
) -> onnx.ModelProto:  # fmt: skip
    """An attention over three tokens; `between` leads from q, k (turned) and v to m."""
    return written(f"{heads} {between} {joined}", {**SIZES, **LINEARS, **(more or {})}, inputs, outputs)


def words() -> onnx.ModelProto:
    """Token ids to an FFN without biases."""
    nodes = "x = Gather(table, ids)  h = MatMul(x, up)  r = Relu(h)  y = MatMul(r, down)"
    return written(nodes, {"table": (20, 16), "up": (16, 32), "down": (32, 16)}, "int64[b, n] ids", "float[b, n, 16] y")


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"
