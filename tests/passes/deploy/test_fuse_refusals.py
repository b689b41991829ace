"""An attention that one node can not stand for keeps its nodes, and the reason is given; unusual ones that it can stand for
say the same afterwards (which the deployment itself compares in ONNX Runtime).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from handwritten import HEADS, JOINED, LINEARS, Weights, attention, saved, written
from torch import Tensor, nn

import toastc
from toastc.compiler.result import Report
from toastc.graphs.fx import FxGraph
from toastc.passes.deploy.fuse import fuse_attention

PLAIN = "s = MatMul(q, k)  p = Softmax<axis=-1>(s)  m = MatMul(p, v)"
SCORES = "float[b, 3, 8] x, float[b, 2, 3, 3] z"
WINDOWS = "float[4, 3, 8] x, float[4, 2, 3, 3] z"
APART: Weights = {"wide": np.array([2, 2, 2, 3, 3]), "narrow": np.array([4, 2, 3, 3])}
IN_WINDOWS = "a = Reshape({0}, wide)  c = Add(a, table)  e = Reshape(c, narrow)  p = Softmax<axis=-1>(e)  m = MatMul(p, v)"
REFUSED: dict[str, tuple[str, Weights, str, str]] = {
    "another axis": (PLAIN.replace("-1", "2"), {}, SCORES, "its softmax is not over the last axis"),
    "no product": ("p = Softmax<axis=-1>(z)  m = MatMul(p, v)", {}, SCORES, "not a product of queries and keys"),
    "a sum of no products": (
        "a = Relu(z)  c = Exp(z)  s = Add(a, c)  p = Softmax<axis=-1>(s)  m = MatMul(p, v)",
        {}, SCORES, "not a product of queries and keys",
    ),
    "tanh": (PLAIN.replace("p = ", "c = Tanh(s)  p = ").replace("(s)  m", "(c)  m"), {}, SCORES, "Tanh) stands between"),
    "turned scores": (
        "s = MatMul(q, k)  c = Transpose<perm=[0, 1, 3, 2]>(s)  p = Softmax<axis=-1>(c)  m = MatMul(p, v)",
        {}, SCORES, "Transpose) stands between its scores and the softmax",
    ),
    "values of one image": (
        "s = MatMul(q, k)  p = Softmax<axis=-1>(s)  u = Gather<axis=0>(v, first)  m = MatMul(p, u)",
        {"first": np.array(0)}, SCORES, "its values have other axes than images, heads and tokens",
    ),
    "values along the queries": (
        's = MatMul(q, k)  p = Softmax<axis=-1>(s)  m = Einsum<equation="bhnm,bhnd->bhmd">(p, v)',
        {}, SCORES, "summed over another axis than that of its keys",
    ),
    "a guard with a mask": (
        "s = MatMul(q, k)  c = Add(s, z)  n = Softmax<axis=-1>(c)  i = IsNaN(n)  p = Where(i, none, n)  m = MatMul(p, v)",
        {"none": np.float32(0)}, SCORES, "guards against tokens that see no other",
    ),
    "windows of every image": (
        "s = MatMul(q, k) " + IN_WINDOWS.format("s"),
        {**APART, "table": (1, 1, 2, 3, 3)}, WINDOWS, "what is added to its windows is not the same for all images",
    ),
    "windows and a mask": (
        "r = MatMul(q, k)  s = Add(r, z) " + IN_WINDOWS.format("s"),
        {**APART, "table": (1, 2, 1, 3, 3)}, WINDOWS, "what is added to its windows differs from image to image",
    ),
}  # fmt: skip


def deployed(model: onnx.ModelProto, folder: Path) -> Report:
    return toastc.prune(saved(model, folder), runtime="ort-cpu", output=folder / "o.onnx").report


def refused(report: Report) -> str:
    assert report.deployed is not None
    assert report.deployed["attentions"] == 0
    return " | ".join(note for note in report.notes if note.startswith("not fused: "))


# An FFN behind it: a model in which nothing at all can be cut is refused before that.
BESIDE = JOINED.replace("y = ", "o = ") + "  f = MatMul(o, w1)  g = Relu(f)  y = MatMul(g, w2)"
FFN: Weights = {"w1": (8, 16), "w2": (16, 8)}


@pytest.mark.parametrize("case", REFUSED)
def test_what_one_node_can_not_stand_for_keeps_its_nodes(case: str, tmp_path: Path) -> None:
    between, more, inputs, words = REFUSED[case]
    outputs = "float[4, 3, 8] y" if inputs is WINDOWS else "float[b, 3, 8] y"
    model = attention(between, {**FFN, **more}, inputs, joined=BESIDE, outputs=outputs)
    assert words in refused(deployed(model, tmp_path))
    assert "Softmax" in [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node]


def test_heads_in_groups(tmp_path: Path) -> None:
    """Scores of five axes."""
    heads = HEADS.replace("[0, 2, 1, 3]", "[0, 2, 3, 1, 4]").replace("[0, 2, 3, 1]", "[0, 2, 3, 4, 1]")
    joined = JOINED.replace("[0, 2, 1, 3]", "[0, 3, 1, 2, 4]")
    model = attention(PLAIN, {"apart": np.array([0, 0, 2, 1, 4])}, heads=heads, joined=joined)
    assert "its scores have other axes than images, heads and tokens" in refused(deployed(model, tmp_path))


@pytest.mark.parametrize("runtime", ["ort-cpu", "ort-cuda"])
def test_heads_of_which_there_may_be_any_number(runtime: str, tmp_path: Path) -> None:
    """Windows of an image on the axis of heads; onnxscript begins to fuse them and does not end."""
    heads = "q = MatMul(x, wq)  k0 = MatMul(x, wk)  v = MatMul(x, wv)  k = Transpose<perm=[0, 1, 3, 2]>(k0)"
    between = "s = MatMul(q, k)  c = Mul(s, scale)  p = Softmax<axis=-1>(c)  m = MatMul(p, v)"
    joined = "o = MatMul(m, wo)  f = MatMul(o, w1)  g = Relu(f)  y = MatMul(g, w2)"
    model = attention(between, FFN, "float[b, w, 3, 8] x", heads, joined, "float[b, w, 3, 8] y")
    report = toastc.prune(saved(model, tmp_path), runtime=runtime, output=tmp_path / "o.onnx").report
    assert "the number of its heads is only known at run time" in refused(report)
    assert any("onnxscript leaves SDPA half done" in note for note in report.notes) == (runtime == "ort-cuda")
    assert {n.domain for n in onnx.load(tmp_path / "o.onnx").graph.node} == {""}


def test_what_onnxscript_fails_at(tmp_path: Path) -> None:
    """A norm of something added to itself: its rules take one of the two for something that nobody else reads."""
    norm: Weights = {"g": np.ones(8, np.float32), "e": np.zeros(8, np.float32), "c": (8,), **FFN}
    text = """f = MatMul(x, w1)  r = Relu(f)  h = MatMul(r, w2)  i = Add(h, c)  j = Add(i, i)
        n = LayerNormalization<axis=-1, epsilon=0.00001, stash_type=1>(j, g, e)  y = Add(n, j)"""
    report = toastc.prune(saved(written(text, norm), tmp_path), runtime="ort-cuda", output=tmp_path / "o.onnx").report
    assert [note for note in report.notes if "onnxscript fails: " in note], report.notes


def test_an_output_that_reads_head_by_head(tmp_path: Path) -> None:
    model = attention(PLAIN, outputs="float[b, 3, 8] y, float[b, 2, 3, 4] m")
    assert "an output of the model reads it head by head" in refused(deployed(model, tmp_path))


def test_a_mask_for_images_and_heads_as_if_they_were_heads(tmp_path: Path) -> None:
    between = """s = MatMul(q, k)  a = Reshape(s, split)  c = Add(a, z)  e = Reshape(c, whole)
        p = Softmax<axis=-1>(e)  m = MatMul(p, v)"""
    sizes: Weights = {**ROWS, "split": np.array([1, 4, 3, 3]), "whole": np.array([4, 3, 3])}
    model = attention(between, sizes, "float[2, 3, 8] x, float[4, 3, 3] z", FLAT, OF_FOUR, "float[2, 3, 8] y")
    assert "what is added to its scores does not fit its heads" in refused(deployed(model, tmp_path))


def test_scores_that_are_an_output(tmp_path: Path) -> None:
    between = "s = MatMul(q, k)  c = Mul(s, scale)  p = Softmax<axis=-1>(c)  m = MatMul(p, v)"
    model = attention(between, outputs="float[b, 3, 8] y, float[b, 2, 3, 3] c")
    assert "its scores are not a product of queries and keys" in refused(deployed(model, tmp_path))


def test_queries_and_keys_that_share_channels_of_one_linear(tmp_path: Path) -> None:
    """Heads 0 and 1 of five ask, 1 and 2 are asked; nothing that was drawn for the one node stays behind."""
    cuts = {name: np.array([n]) for name, n in (("at0", 0), ("at1", 1), ("at2", 2), ("at3", 3), ("at5", 5))}
    heads = """
        all = MatMul(x, w)  five = Reshape(all, fives)
        q1 = Slice(five, at0, at2, at2)  k1 = Slice(five, at1, at3, at2)  v1 = Slice(five, at3, at5, at2)
    """ + HEADS[HEADS.index("q = Transpose") :]
    model = attention(PLAIN, {"w": (8, 20), "fives": np.array([0, 0, 5, 4]), **cuts}, heads=heads)
    assert "its queries, keys and values overlap" in refused(deployed(model, tmp_path))
    assert "Split" not in [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node]


# ---- attentions that are one node already, but not the runtime's ------------------------------------------------------

WHOLE = "q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)  j = Attention<{0}>(q, k, v{1})  y = MatMul(j, wo)"
TWO = "q_num_heads=2, kv_num_heads=2"


def whole(attributes: str, mask: str = "", more: Weights | None = None) -> onnx.ModelProto:
    text = WHOLE.format(attributes, f", {mask}" if mask else "")
    return written(text, {**LINEARS, **(more or {})}, opset=23)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (whole(f"{TWO}, is_causal=1"), "it is causal"),
        (whole(f"{TWO}, softcap=2.0"), "it caps its scores"),
        (whole(TWO, "seen", {"seen": np.tril(np.ones((3, 3), bool))}), "it has a mask of booleans"),
        (whole("q_num_heads=2, kv_num_heads=1", more={"wk": (8, 4), "wv": (8, 4)}), "it shares keys between heads"),
    ],
    ids=["causal", "capped", "booleans", "shared keys"],
)
def test_a_node_that_does_more_than_the_runtimes_stays(model: onnx.ModelProto, words: str, tmp_path: Path) -> None:
    report = deployed(model, tmp_path)
    assert any("not fused" in note and words in note for note in report.notes), report.notes
    assert [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node].count("Attention") == 1


@pytest.mark.parametrize("mask", [(3, 3), (2, 3, 3), (1, 1, 3, 3)], ids=str)
def test_a_node_of_onnx_becomes_the_runtimes(mask: tuple[int, ...], tmp_path: Path) -> None:
    """On rows, and with its mask: [queries, keys], with heads and images in front."""
    report = deployed(whole(TWO, "mask", {"mask": mask}), tmp_path)
    assert report.deployed is not None and report.deployed["worst"] < 1e-5
    kinds = [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node]
    assert kinds.count("MultiHeadAttention") == 1 and "Attention" not in kinds and "Transpose" not in kinds


# ---- unusual ones that are fused ----------------------------------------------------------------------------------------

FLAT = HEADS.replace("q = T", "q4 = T").replace("k = T", "k4 = T").replace("v = T", "v4 = T") + """
    q = Reshape(q4, rows)  k = Reshape(k4, columns)  v = Reshape(v4, rows)
"""  # fmt: skip
ROWS: Weights = {"rows": np.array([4, 3, 4]), "columns": np.array([4, 4, 3]), "four": np.array([2, 2, 3, 4])}
OF_FOUR = "f = Reshape(m, four)  t = Transpose<perm=[0, 2, 1, 3]>(f)  j = Reshape(t, join)  y = MatMul(j, wo)"
FUSED: dict[str, tuple[str, Weights, str, str, str]] = {
    "in double": (
        "s = MatMul(q, k)  d = Cast<to=11>(s)  c = Add(d, table)  e = Softmax<axis=-1>(c)  p = Cast<to=1>(e)  m = MatMul(p, v)",
        {"table": np.random.default_rng(1).standard_normal((1, 2, 3, 3))}, "float[2, 3, 8] x", HEADS, JOINED,
    ),
    "images and heads on one axis": (PLAIN, ROWS, "float[2, 3, 8] x", FLAT, OF_FOUR),
    "and a mask for each": (
        "s = MatMul(q, k)  c = Add(s, z)  p = Softmax<axis=-1>(c)  m = MatMul(p, v)",
        ROWS, "float[2, 3, 8] x, float[4, 3, 3] z", FLAT, OF_FOUR,
    ),
    "and queries that are moved": (
        "r = Add(q, moved)  s = MatMul(r, k)  p = Softmax<axis=-1>(s)  m = MatMul(p, v)",
        {**ROWS, "moved": (4, 3, 4)}, "float[2, 3, 8] x", FLAT, OF_FOUR,
    ),
    "and heads that are read one by one": (
        "s = MatMul(q, k)  p = Softmax<axis=-1>(s)  n = MatMul(p, v)  m = Relu(n)", ROWS, "float[2, 3, 8] x", FLAT, OF_FOUR,
    ),
    "heads that are read one by one": (
        "s = MatMul(q, k)  p = Softmax<axis=-1>(s)  n = MatMul(p, v)  m = Relu(n)", {}, "float[b, 3, 8] x", HEADS, JOINED,
    ),
    "windows": (
        "s = MatMul(q, k) " + IN_WINDOWS.format("s"), {**APART, "table": (1, 2, 1, 3, 3)}, "float[4, 3, 8] x", HEADS, JOINED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FUSED)
def test_an_unusual_attention_is_fused_and_says_the_same(case: str, tmp_path: Path) -> None:
    between, more, inputs, heads, joined = FUSED[case]
    size = inputs[len("float[") :].split(",")[0]
    model = attention(between, more, inputs, heads, joined, outputs=f"float[{size}, 3, 8] y")
    report = deployed(model, tmp_path)
    assert report.deployed is not None and report.deployed["worst"] < 1e-5
    assert report.deployed["attentions"] == 1, report.notes
    assert "Softmax" not in [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node]


# ---- torch ----------------------------------------------------------------------------------------------------------------


class SumAndProduct(nn.Module):
    """A mask and Q.K' in one call, which is a sum and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return torch.bmm(torch.softmax(torch.baddbmm(mask, q, k.transpose(1, 2)), dim=-1), v)


def test_a_sum_and_a_product_in_one_call_of_torch() -> None:
    exported = torch.export.export(SumAndProduct().eval(), (torch.zeros(2, 3, 8), torch.zeros(2, 3, 3)))
    _, fused = fuse_attention(FxGraph(exported.module()))
    assert fused.count == 0 and "its scores are a sum and a product in one" in " | ".join(fused.left)
