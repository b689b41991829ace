"""Random attention graphs against a numpy reference that knows which row is which channel of which head.

The builder scatters the rows of q, k and v over one fused weight in a random layout, puts random reshapes and
transposes in between, and keeps the scale wherever it likes. The pruned graph must give what numpy computes from the
kept channels alone, with the scale of the original head_dim.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from oracle import random_plan

import toastc
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.passes.match import match
from toastc.plans.plan import Basis, Plan

LAYOUTS = ("3hd", "h3d", "hd3", "3dh", "split", "apart")


@dataclass(frozen=True)
class Spec:
    heads: int
    width: int
    tokens: int
    layout: str
    order: tuple[int, ...]  # where q, k and v stand among the three
    scale_on: str  # q, k, scores
    detour: bool  # flatten heads into the batch and back
    merged: bool  # K is transposed by the layout's own permutation
    free_batch: bool
    seed: int

    @property
    def model(self) -> int:
        return self.heads * self.width


specs = st.builds(
    Spec,
    heads=st.integers(2, 4),
    width=st.integers(4, 9),
    tokens=st.integers(3, 6),
    layout=st.sampled_from(LAYOUTS),
    order=st.permutations((0, 1, 2)).map(tuple),
    scale_on=st.sampled_from(("q", "k", "scores")),
    detour=st.booleans(),
    merged=st.booleans(),
    free_batch=st.booleans(),
    seed=st.integers(0, 10_000),
)


class Builder:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def const(self, array: np.ndarray | list[int]) -> str:
        name = f"c{len(self.weights)}"
        array = np.asarray(array, np.int64) if isinstance(array, list) else array
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str | list[str]:
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names


def weights_of(spec: Spec) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(spec.seed)
    d = spec.model
    made = {n: rng.standard_normal((d, spec.heads, spec.width)).astype(np.float32) / d**0.5 for n in "qkv"}
    made |= {f"b{n}": rng.standard_normal((spec.heads, spec.width)).astype(np.float32) for n in "qkv"}
    made["o"] = rng.standard_normal((spec.heads, spec.width, d)).astype(np.float32) / d**0.5
    return made


def reference(spec: Spec, x: np.ndarray, w: dict[str, np.ndarray], qk: np.ndarray, vo: np.ndarray) -> np.ndarray:
    """`qk`, `vo`: [heads, width] masks of the channels that stay."""
    q, k, v = (np.einsum("bnd,dhw->bhnw", x, w[n]) + w[f"b{n}"][:, None] for n in "qkv")
    scores = np.einsum("bhnw,bhmw,hw->bhnm", q, k, qk) * spec.width**-0.5
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return np.einsum("bhnm,bhmw,hw,hwd->bnd", p, v, vo, w["o"])


def heads_apart(b: Builder, spec: Spec, fused: str, batch: int) -> list[str]:
    """[B, N, 3*H*W] taken apart into three [B, H, N, W], in the order in which they stand in the weight."""
    h, w, n = spec.heads, spec.width, spec.tokens
    if spec.layout == "split":
        parts = b.op("Split", fused, b.const([h * w] * 3), outputs=3, axis=-1)
        return [str(b.op("Transpose", str(b.op("Reshape", p, b.const([batch, n, h, w]))), perm=[0, 2, 1, 3])) for p in parts]
    shapes = {"3hd": (3, h, w), "h3d": (h, 3, w), "hd3": (h, w, 3), "3dh": (3, w, h)}
    letters = {"3hd": "3hd", "h3d": "h3d", "hd3": "hd3", "3dh": "3dh"}[spec.layout]
    wide = b.op("Reshape", fused, b.const([batch, n, *shapes[spec.layout]]))
    axes = {"3": 2 + letters.index("3"), "h": 2 + letters.index("h"), "d": 2 + letters.index("d")}
    front = b.op("Transpose", str(wide), perm=[axes["3"], 0, axes["h"], 1, axes["d"]])
    return [str(b.op("Gather", str(front), b.const(np.array(i)), axis=0)) for i in range(3)]


def fuse(spec: Spec, parts: list[np.ndarray]) -> np.ndarray:
    """Three [..., H, W] arrays on one axis, in the layout's order."""
    stacked = np.stack(parts, axis=-3)  # [..., 3, H, W]
    moved = {"3hd": (-3, -2, -1), "split": (-3, -2, -1), "h3d": (-2, -3, -1), "hd3": (-2, -1, -3), "3dh": (-3, -1, -2)}[
        spec.layout
    ]
    lead = stacked.ndim - 3
    return np.transpose(stacked, [*range(lead), *[lead + 3 + m for m in moved]]).reshape(*stacked.shape[:lead], -1)


def build(spec: Spec, w: dict[str, np.ndarray]) -> onnx.ModelProto:
    b, h, width, n, d = Builder(), spec.heads, spec.width, spec.tokens, spec.model
    batch = -1 if spec.free_batch else 2
    if spec.layout == "apart":
        found = {}
        for name in "qkv":
            y = b.op("Add", str(b.op("MatMul", "x", b.const(w[name].reshape(d, -1)))), b.const(w[f"b{name}"].reshape(-1)))
            found[name] = str(b.op("Transpose", str(b.op("Reshape", str(y), b.const([batch, n, h, width]))), perm=[0, 2, 1, 3]))
    else:
        names = ["qkv"[i] for i in spec.order]
        fused = b.op("MatMul", "x", b.const(fuse(spec, [w[c] for c in names])))
        fused = b.op("Add", str(fused), b.const(fuse(spec, [w[f"b{c}"] for c in names])))
        found = dict(zip(names, heads_apart(b, spec, str(fused), batch), strict=True))
    q, k, v = (found[c] for c in "qkv")
    if spec.detour:
        q = str(b.op("Reshape", str(b.op("Reshape", q, b.const([-1, n, width]))), b.const([batch, h, n, width])))
    scale = b.const(np.float32(width**-0.5))
    k = str(b.op("Mul", k, scale)) if spec.scale_on == "k" and spec.merged else k
    k = str(b.op("Transpose", k, perm=[0, 1, 3, 2]))
    k = str(b.op("Mul", k, scale)) if spec.scale_on == "k" and not spec.merged else k
    q = str(b.op("Mul", q, scale)) if spec.scale_on == "q" else q
    scores = str(b.op("MatMul", q, k))
    scores = str(b.op("Mul", scores, scale)) if spec.scale_on == "scores" else scores
    mixed = str(b.op("MatMul", str(b.op("Softmax", scores, axis=-1)), v))
    joined = b.op("Reshape", str(b.op("Transpose", mixed, perm=[0, 2, 1, 3])), b.const([batch, n, d]))
    b.nodes.append(helper.make_node("MatMul", [str(joined), b.const(w["o"].reshape(-1, d))], ["y"]))
    shape = ["batch" if spec.free_batch else 2, n, d]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(b.nodes, "attention", [value[0]], [value[1]], b.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@given(specs)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_pruned_graph_equals_numpy_on_the_kept_channels(spec: Spec) -> None:
    w = weights_of(spec)
    with tempfile.TemporaryDirectory() as folder:
        dense, small = Path(folder) / "dense.onnx", Path(folder) / "small.onnx"
        onnx.save(build(spec, w), dense)
        sites = match(OnnxGraph(load_model(dense)))[1]
        assert [(s.kind, s.head_count, s.head_dim, s.v_head_dim) for s in sites] == [
            ("attention", spec.heads, spec.width, spec.width)
        ]
        plan = random_plan(sites, spec.seed)
        toastc.prune(dense, plan=plan, output=small)
        x = np.random.default_rng(1).standard_normal((3 if spec.free_batch else 2, spec.tokens, spec.model)).astype(np.float32)
        got = ort.InferenceSession(small).run(None, {"x": x})[0]
    masks = {name: np.zeros((spec.heads, spec.width)) for name in ("qk", "vo")}
    heads = plan.choices[f"{sites[0].name}.heads"].index[0]
    for name, mask in masks.items():
        for head in heads:
            mask[head, plan.choices[f"{sites[0].name}.{name}"].index[head]] = 1
    expected = reference(spec, x, w, masks["qk"], masks["vo"])
    assert np.abs(got - expected).max() <= 2e-5 * max(1.0, np.abs(expected).max())


def rotated(spec: Spec, x: np.ndarray, w: dict[str, np.ndarray], qk: Basis, vo: Basis) -> np.ndarray:
    """q' = L q, k' = R^T k, v' = L v, and R^T W_o behind it."""
    q, k, v = (np.einsum("bnd,dhw->bhnw", x, w[n]) + w[f"b{n}"][:, None] for n in "qkv")
    q, k = np.einsum("bhnw,hcw->bhnc", q, qk.left), np.einsum("bhnw,hwc->bhnc", k, qk.right)
    scores = np.einsum("bhnc,bhmc->bhnm", q, k) * spec.width**-0.5
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return np.einsum("bhnm,bhmw,hcw,hvc,hvd->bnd", p, v, vo.left, vo.right, w["o"])


@given(specs)
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_a_basis_does_to_each_side_what_it_says(spec: Spec) -> None:
    w, rng = weights_of(spec), np.random.default_rng(spec.seed)

    def basis() -> Basis:
        small = spec.width - 2
        return Basis(
            *(rng.standard_normal((spec.heads, *s)) / spec.width**0.5 for s in ((small, spec.width), (spec.width, small)))
        )

    with tempfile.TemporaryDirectory() as folder:
        dense, small = Path(folder) / "dense.onnx", Path(folder) / "small.onnx"
        onnx.save(build(spec, w), dense)
        site = match(OnnxGraph(load_model(dense)))[1][0]
        qk, vo = basis(), basis()
        plan = Plan({f"{site.name}.qk": qk, f"{site.name}.vo": vo})
        toastc.prune(dense, plan=plan, output=small)
        x = rng.standard_normal((2, spec.tokens, spec.model)).astype(np.float32)
        got = ort.InferenceSession(small).run(None, {"x": x})[0]
    expected = rotated(spec, x, w, qk, vo)
    assert np.abs(got - expected).max() <= 5e-5 * max(1.0, np.abs(expected).max())
