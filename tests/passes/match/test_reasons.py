"""Every reason why a coupling can not be cut, each with a model that brings it up; and that none is without one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from handwritten import HEADS, JOINED, LINEARS, SIZES, Weights, attention, saved, written
from small import Masked
from zoo_exports import quiet

from toastc import api
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.passes import match
from toastc.passes.state import State

SCORED = "s = MatMul(q, k)  p = Softmax(s)  m = MatMul(p, v)"
HALF = "p = Softmax(s)  m = MatMul(p, v)"
FUSED = HEADS.replace("[0, 2, 3, 1]", "[0, 2, 1, 3]")  # keys as the node Attention takes them
PLAIN: Weights = {"w1": (8, 16), "w2": (16, 8)}
TWO = "float[b, 3, 8] y, float[b, 3, 8] z"
BESIDE = "float[b, 3, 8] x, float[b, 2, 3, 4] z"
TURNED = "float[b, 3, 8] x, float[b, 2, 4, 3] z"
SUM = "two = MatMul(j, w2)  y = Add(one, two)"


def at(*positions: int) -> np.ndarray:
    return np.array(positions)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def ffn(
    inside: str, more: Weights | None = None, inputs: str = "float[b, 3, 8] x", outputs: str = "float[b, 3, 8] y"
) -> onnx.ModelProto:
    """`inside` leads from h to g."""
    return written(f"h = MatMul(x, w1)  {inside}  y = MatMul(g, w2)", {**PLAIN, **(more or {})}, inputs, outputs)


def fused(
    inside: str, more: Weights | None = None, inputs: str = "float[b, 3, 8] x", outputs: str = "float[b, 3, 8] y"
) -> onnx.ModelProto:
    return written(f"{FUSED} {inside} {JOINED}", {**SIZES, **LINEARS, **(more or {})}, inputs, outputs, opset=23)


def keys_for_two(inside: str, more: Weights) -> onnx.ModelProto:
    """Four heads of queries, two of keys and values."""
    sizes: Weights = {"wq": (8, 16), "wo": (16, 8), "apart": at(0, 0, 4, 4), "join": at(0, 0, 16), "pairs": at(0, 0, 2, 4)}
    heads = HEADS.replace("k1 = Reshape(k0, apart)  v1 = Reshape(v0, apart)", "k1 = Reshape(k0, pairs)  v1 = Reshape(v0, pairs)")
    return attention(inside, {**sizes, "twice": at(0, 0, 1, 1), **more}, heads=heads)


def picked(*channels: int) -> onnx.ModelProto:
    """Values made of these channels of their linear."""
    heads = HEADS.replace("v0 = MatMul(x, wv)", "v9 = MatMul(x, wv)  v0 = Gather<axis=2>(v9, pick)")
    return attention(SCORED, {"pick": at(*channels)}, heads=heads)


TWO_OF_ONE = attention(  # two attentions, the same queries
    f"{SCORED}  k5 = MatMul(x, w5)  k6 = Reshape(k5, apart)  k7 = Transpose<perm=[0, 2, 3, 1]>(k6)  s2 = MatMul(q, k7)"
    "  p2 = Softmax(s2)  v5 = MatMul(x, w6)  v6 = Reshape(v5, apart)  v7 = Transpose<perm=[0, 2, 1, 3]>(v6)  m2 = MatMul(p2, v7)",
    {"w5": (8, 8), "w6": (8, 8), "w7": (8, 8)},
    joined=JOINED.replace("y =", "a =")
    + "  t2 = Transpose<perm=[0, 2, 1, 3]>(m2)  j2 = Reshape(t2, join)  c = MatMul(j2, w7)  y = Add(a, c)",
)


# What is refused ("": an FFN or a node), why ("@" is a node), and a model.
REASONS: list[tuple[str, str, onnx.ModelProto]] = [
    # ---- what meets the channels of a linear
    ("", "is an output of the model", ffn("g = Relu(h)", outputs="float[b, 3, 8] y, float[b, 3, 16] g")),
    (
        "vo", "@ is applied along another axis of it",
        attention(
            SCORED, {"wo": (3, 3)}, outputs="float[b, 8, 3] y",
            joined=JOINED.replace("y = MatMul(j, wo)", "turned = Transpose<perm=[0, 2, 1]>(j)  y = MatMul(turned, wo)"),
        ),
    ),
    (
        "", "@ adds a bias that is not a constant",
        written("h = Gemm(x, w1, c)  g = Relu(h)  y = MatMul(g, w2)", PLAIN, "float[4, 8] x, float[16] c", "float[4, 8] y"),
    ),
    (
        "", "its weight is shared by @ and @",
        written(
            "h = MatMul(x, w1)  g = Relu(h)  y = MatMul(g, w2)  c = Gemm<transB=1>(a, w1)  d = Relu(c)  z = MatMul(d, w3)",
            {**PLAIN, "w3": (8, 16)}, "float[b, 3, 8] x, float[4, 16] a", "float[b, 3, 8] y, float[4, 16] z",
        ),
    ),
    (
        "", "@ combines it with a tensor no linear makes",
        ffn("e = Add(h, z)  g = Relu(e)", inputs="float[b, 3, 8] x, float[b, 3, 16] z"),
    ),
    ("", "@ divides by it", ffn("e = Relu(h)  d = ReduceMax<keepdims=1>(e, axis)  g = Div(e, d)", {"axis": at(1)})),
    ("", "@ divides each channel by its own number", ffn("e = Div(h, d)  g = Relu(e)", {"d": ones(16)})),
    ("", "@ mixes its channels", ffn("e = Softmax(h)  g = Relu(e)")),
    (
        "qk", "@ mixes its channels",
        attention(f"d = ReduceMax<keepdims=1>(q, last)  n = Sub(q, d)  s = MatMul(n, k)  {HALF}", {"last": at(3)}),
    ),
    ("", "@ is not understood", ffn("e, which = TopK(h, all)  g = Relu(e)", {"all": at(16)})),
    (
        "", "@ mixes what stands on another axis of it",
        ffn("c = Conv<group=3, pads=[1, 1]>(h, deep)  g = Relu(c)", {"deep": ones(3, 1, 3)}),
    ),
    # ---- products
    ("qk", "@ multiplies it with a tensor no linear makes", attention(f"s = MatMul(q, z)  {HALF}", inputs=TURNED)),
    (
        "qk", "both operands of @ carry channels outwards",
        attention(
            "s = MatMul(q, k)  p = Softmax(s)  m0 = MatMul(p, v)  turned = Transpose<perm=[0, 1, 3, 2]>(v)  c = MatMul(turned, q)"
            "  e = Softmax(c)  m1 = MatMul(v, e)  m = Add(m0, m1)"
        ),
    ),
    (
        "heads", "@ does not keep its heads apart",
        attention(
            f'{SCORED}  w = MatMul(x, w1)  z = Einsum<equation="bhnm,bmd->bnd">(p, w)', {"w1": (8, 4)},
            outputs="float[b, 3, 8] y, float[b, 3, 4] z",
        ),
    ),
    (
        "qk", "@ carries its channels outwards and sums over them at once",
        attention(
            f'k3 = MatMul(x, wk3)  r = Einsum<equation="bhnd,bmd->bnm">(q, k3)  s = Unsqueeze(r, axis)  {HALF}',
            {"wk3": (8, 4), "axis": at(1)},
            heads=HEADS.replace("k1 = Reshape(k0, apart)", "").replace("k = Transpose<perm=[0, 2, 3, 1]>(k1)", ""),
        ),
    ),
    (
        "", "@ sums over its heads",
        attention(
            'r = MatMul(q, k)  s = ReduceMean<keepdims=0>(r, axis)  p = Softmax(s)  m = Einsum<equation="bij,bhjd->bid">(p, v)',
            {"axis": at(1), "wo": (4, 8)}, joined="y = MatMul(m, wo)",
        ),
    ),
    # ---- attention in one node
    (
        "", "it is a mask of @",
        fused(
            "h = MatMul(x, w1)  g = Relu(h)  z = MatMul(g, w2)  mask = Unsqueeze(g, axis)  m = Attention(q, k, v, mask)",
            {"w1": (8, 3), "w2": (3, 8), "axis": at(1)}, outputs=TWO,
        ),
    ),
    (
        "heads", "the mask of @ has one entry for each head",
        fused("m = Attention(q, k, v, mask)", inputs="float[b, 3, 8] x, float[b, 2, 3, 3] mask"),
    ),
    ("qk", "@ multiplies it with a tensor no linear makes", fused("m = Attention(z, k, v)", inputs=BESIDE)),
    (
        "", "@ takes it along another axis",
        fused(
            "turned = Transpose<perm=[0, 1, 3, 2]>(v)  m = Attention(q, k, turned)",
            {"wq": (8, 6), "wk": (8, 6), "wv": (8, 6), "wo": (6, 8), "apart": at(0, 0, 2, 3), "join": at(0, 0, 6)},
        ),
    ),
    (
        "vo", "@ adds one bias to it and to a tensor no linear makes",
        written(
            "k = MatMul(x, wk)  v = MatMul(x, wv)  y = MatMul(j, wo)"
            "  j = com.microsoft.MultiHeadAttention<num_heads=2>(z, k, v, bias)",
            {**LINEARS, "bias": ones(24)}, "float[b, 3, 8] x, float[b, 3, 8] z",
        ),
    ),
    ("", "its query, key and value do not come from linears", fused("m = Attention(z, z, z)", inputs=BESIDE)),
    # ---- attentions
    (
        "", "no product of it and a value from a linear was found",
        attention("s = MatMul(q, k)  p = Softmax(s)  m = MatMul(p, z)", inputs=BESIDE),
    ),
    (
        "qk", "its labels do not reach the product",
        attention(
            "a = Reshape(x, apart)  left = Transpose<perm=[0, 2, 1, 3]>(a)  right = Transpose<perm=[0, 2, 3, 1]>(a)"
            f"  s = MatMul(left, right)  {HALF}"
        ),
    ),
    (
        "qk", "a constant or an activation makes something of its channels where their weights are nothing",
        attention(f"n = Add(q, scale)  c = Sigmoid(k)  s = MatMul(n, c)  {HALF}"),
    ),
    (
        "vo", "one number meets all channels of a head, which hang together by it",
        attention(SCORED, {"each": ones(1, 2, 1, 1)}, heads=HEADS.replace("v = ", "plain = ") + "  v = Mul(plain, each)"),
    ),
    (
        "vo", "no linear consumes it",
        attention(f"{SCORED}  z = Shape(m)  y = Identity(x)", joined="", outputs="float[b, 3, 8] y, int64[4] z"),
    ),
    (
        "vo", "its channels are used twice: @, @",
        attention(SCORED, {"w2": (8, 8)}, joined=f"{JOINED.replace('y =', 'one =')}  {SUM}"),
    ),
    (
        "vo", "some of its channels come from no linear",
        attention(
            "s = MatMul(q, k)  p = Softmax(s)  wide = Concat<axis=3>(v, z)  m = MatMul(p, wide)",
            {"wo": (10, 8), "join": at(0, 0, 10)}, inputs="float[b, 3, 8] x, float[b, 2, 3, 1] z",
        ),
    ),
    ("vo", "its heads have different numbers of channels", picked(0, 1, 2, 3, 4, 4, 5, 5)),
    ("vo", "its channels do not meet @ one by one", picked(0, 1, 2, 2, 4, 5, 6, 6)),
    ("qk", "another attention has its channels, and they go with that one's", TWO_OF_ONE),
    (
        "vo", "its keys are its values",
        attention("back = Transpose<perm=[0, 1, 3, 2]>(k)  s = MatMul(q, k)  p = Softmax(s)  m = MatMul(p, back)"),
    ),
    (
        "", "its channels are the heads of a product",
        attention(
            SCORED, {"axis": at(3)},
            heads=HEADS.replace(
                "v1 = Reshape(v0, apart)",
                'g0 = Einsum<equation="bnhd,bnhd->bnh">(q1, k1)  g1 = Unsqueeze(g0, axis)'
                "  u1 = Reshape(v0, apart)  v1 = Mul(u1, g1)",
            ),
        ),
    ),
    # ---- whole heads
    ("heads", "another attention has its queries or keys", TWO_OF_ONE),
    (
        "heads", "its scores are a sum of several products",
        attention(
            "q5 = MatMul(x, w5)  k5 = MatMul(x, w6)  q6 = Reshape(q5, apart)  k6 = Reshape(k5, apart)"
            "  q7 = Transpose<perm=[0, 2, 1, 3]>(q6)  k7 = Transpose<perm=[0, 2, 3, 1]>(k6)"
            f"  r1 = MatMul(q, k)  r2 = MatMul(q7, k7)  s = Add(r1, r2)  {HALF}", {"w5": (8, 8), "w6": (8, 8)},
        ),
    ),
    ("heads", "it has a single head", attention(SCORED, {"apart": at(0, 0, 1, 8)})),
    (
        "heads", "the scores do not keep its heads apart",
        attention(f"r = MatMul(q, k)  s = Gather<axis=1>(r, flip)  {HALF}", {"flip": at(1, 0)}),
    ),
    (
        "heads", "the scores do not keep its heads apart",
        attention(f"r = MatMul(q, k)  s = ReduceMean<keepdims=1>(r, one)  {HALF}", {"one": at(1)}),
    ),
    (
        "heads", "its heads share channels of the query and the key",
        attention(f"first = Gather<axis=1>(k, zero)  s = MatMul(q, first)  {HALF}", {"zero": at(0, 0)}),
    ),
    (
        "heads", "several of its heads share a key, and a bias tells them apart",
        keys_for_two(
            "k4 = Gather<axis=1>(k, twice)  v4 = Gather<axis=1>(v, twice)  r = MatMul(q, k4)  s = Add(r, bias)  p = Softmax(s)"
            "  m = MatMul(p, v4)", {"bias": (4, 1, 1)},
        ),
    ),
    # ---- FFNs
    (
        "", "its channels are values that a product weighs head by head",
        attention("m0 = MatMul(fixed, v)  m = Relu(m0)", {"fixed": (1, 2, 3, 3)}),
    ),
    ("", "its channels are used twice: @, @", ffn("g = Relu(h)  z = MatMul(g, w3)", {"w3": (16, 8)}, outputs=TWO)),
]  # fmt: skip


@pytest.mark.parametrize(("what", "why", "model"), REASONS, ids=[f"{what}: {why}" for what, why, _ in REASONS])
def test_each_reason_is_told(what: str, why: str, model: onnx.ModelProto) -> None:
    pattern = re.escape(why).replace("@", r"n\d+ \(\w+\)")
    found = api.inspect(model)
    refused = [(r["node"].rpartition(".")[2] if "." in r["node"] else "", r["reason"]) for r in found["rejects"]]
    assert any(node == what and re.fullmatch(pattern, reason) for node, reason in refused), refused


def test_a_mask_added_inside_a_product() -> None:
    """torch has a product that adds; ONNX has none."""
    with quiet():
        found = api.inspect(Masked().eval(), example_inputs=(torch.randn(2, 5, 32), torch.randn(4, 5, 5)))
    (reason,) = {r["reason"] for r in found["rejects"]}
    assert re.fullmatch(r"baddbmm\S* \(baddbmm\S*\) adds a tensor to it", reason), found["rejects"]


def test_a_first_block_that_stays_whole(tmp_path: Path) -> None:
    graph = OnnxGraph(load_model(saved(ffn("g = Relu(h)"), tmp_path)))
    (site,) = match.MatchSites(spare="first")(State(graph)).sites
    assert {c.reason for c in (*site.couplings, site.inputs) if c} == {"the first block stays whole"}


ELSEWHERE = {  # in the two tests above, and in test_whole.py
    "adds a tensor to it", "the first block stays whole", "others take it, a residual stream", "no linear takes it",
    "what it reads: no linear makes it", "no softmax stands between two products with it",
    "no activation stands between it and the next linear",
}  # fmt: skip


def test_no_reason_is_without_a_model() -> None:
    """Whoever adds one adds its model here."""
    folder = Path(match.__file__).parent
    told = [why for _, why, _ in REASONS]
    untold = [text for path in sorted(folder.glob("*.py")) if not path.name.startswith("token") for text in texts(path)
              if not any(text in why for why in told) and text not in ELSEWHERE]  # fmt: skip
    assert untold == []


def texts(path: Path) -> list[str]:
    """The longest fixed part of each text of three words or more that is neither a docstring nor an error."""
    tree = ast.parse(path.read_text())
    errors = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "ToastcError"]
    left_out = {id(x) for e in errors for x in ast.walk(e)} | {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    parts = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
    found = []
    for node in ast.walk(tree):
        if id(node) in left_out | parts or not isinstance(node, ast.Constant | ast.JoinedStr):
            continue
        pieces = [str(v.value) for v in getattr(node, "values", [node]) if isinstance(v, ast.Constant)]
        text = max(pieces, key=len, default="").strip()
        if text.count(" ") > 1:
            found.append(text)
    return found
