"""What can not be cut is said, with its reason, and what stands beside it is still found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from handwritten import HEADS, JOINED, LINEARS, SIZES, attention, written
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from zoo_exports import quiet
from zoo_models import FAMILIES

import toastc
from toastc import api
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.graphs.onnx.session import session
from toastc.passes.match import match
from toastc.system.errors import NothingToPrune

torch.set_num_threads(1)


def reasons(found: dict) -> str:
    return " | ".join(f"{r['node']}: {r['reason']}" for r in found["rejects"])


def inspected(name: str) -> dict:
    family = FAMILIES[name]
    with quiet():
        return api.inspect(family.small().eval(), example_inputs=tuple(family.inputs(False, 2).values()))


@pytest.mark.parametrize("name", ["vit_qknorm", "swinv2_tiny", "beit3_base"])
def test_a_norm_over_channels_rejects_nothing(name: str) -> None:
    attention = [s for s in inspected(name)["sites"] if s["kind"] == "attention"]
    assert attention and all(c["prunable"] for s in attention for c in s["couplings"])


def test_talking_heads_keep_their_heads_and_lose_channels() -> None:
    found = inspected("toy_talking")
    why = {r["node"]: r["reason"] for r in found["rejects"]}
    for site in [s for s in found["sites"] if s["kind"] == "attention"]:
        assert "heads apart" in why[f"{site['name']}.heads"]
        assert all(c["prunable"] for c in site["couplings"])


def test_attention_over_channels_is_rejected_with_its_reason() -> None:
    found = inspected("xcit_tiny")
    assert "softmax" in reasons(found)
    assert "outwards" in reasons(found)


class Twice(nn.Module):
    """An FFN whose hidden channels feed two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.fc1(x))
        return x + self.fc2(h) * torch.sigmoid(self.fc3(h))


def test_hidden_channels_used_twice() -> None:
    found = api.inspect(Twice().eval(), example_inputs=(torch.zeros(2, 4, 8),))
    assert found["sites"] == []
    assert "used twice" in reasons(found)


def test_attention_in_one_node_with_more_to_it() -> None:
    heads = HEADS.replace("k = Transpose<perm=[0, 2, 3, 1]>", "k = Transpose<perm=[0, 2, 1, 3]>")
    model = written(f"{heads} m, keys, values = Attention(q, k, v) {JOINED}", {**SIZES, **LINEARS}, opset=23)
    model.graph.output.append(helper.make_tensor_value_info("keys", TensorProto.FLOAT, None))  # a cache of keys
    found = api.inspect(model)
    assert found["sites"] == []
    assert "(Attention) is not understood" in reasons(found)


def test_hidden_channels_that_are_an_output() -> None:
    assert "output of the model" in reasons(inspected("toy_leak"))


@pytest.mark.parametrize(
    ("told", "why"),
    [([], "has an output whose shape is only known at run time"), ([[2, 4, 32]], "takes its sizes at run time")],
    ids=["shape unknown", "shape known"],
)
def test_sizes_only_known_at_run_time(told: list[list[int]], why: str) -> None:
    """An FFN whose hidden tensor is reshaped by a shape that is an input of the model."""
    rng = np.random.default_rng(0)
    weights = {
        n: numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in (("a", (8, 32)), ("b", (32, 8)))
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["s"], name="late"),
        helper.make_node("MatMul", ["s", "b"], ["y"]),
    ]
    given = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 8]),
        helper.make_tensor_value_info("shape", TensorProto.INT64, [3]),
    ]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    known = [helper.make_tensor_value_info("s", TensorProto.FLOAT, shape) for shape in told]
    graph = helper.make_graph(nodes, "late", given, out, list(weights.values()), value_info=known)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    found = api.inspect(model)
    assert found["sites"] == []
    assert f"late (Reshape) {why}" in reasons(found)


def test_a_convolution_whose_weight_is_a_row(tmp_path: Path) -> None:
    """Of a damaged file; nothing can be said of it, and nothing breaks."""
    model = written("z = Conv(x, w)  y = Identity(x)", {"w": (8,)})
    onnx.save(model, tmp_path / "m.onnx")
    graph = OnnxGraph(load_model(tmp_path / "m.onnx"))
    assert [op.type for op in graph.ops if op.type == "Conv"] and match(graph)[1] == ()


def with_foreign(text: str, told: str, path: Path) -> Path:
    """An FFN with an operator of a domain that nobody knows; the file tells the shape of one tensor."""
    model = written(text, {"w1": (8, 16), "w2": (16, 8)})
    model.opset_import.append(helper.make_opsetid("other", 1))
    model.graph.value_info.append(helper.make_tensor_value_info(told, TensorProto.FLOAT, ["b", 3, 16]))
    onnx.save(model, path)
    return path


def test_an_operator_of_another_domain_is_not_onnxs(tmp_path: Path) -> None:
    """It has the name of one that adds two tensors, and takes one."""
    text = "h = MatMul(x, w1)  g = other.Add(h)  r = Relu(g)  a = MatMul(r, w2)  y = Add(x, a)"
    path = with_foreign(text, "g", tmp_path / "m.onnx")
    graph = OnnxGraph(load_model(path))
    assert graph.without_idle_masks() is graph
    with pytest.raises(NothingToPrune, match=r"n1 \(other::Add\) is not understood"):
        toastc.prune(path, 0.5)


def test_what_takes_a_tensor_of_unknown_shape(tmp_path: Path) -> None:
    """The file says what comes out, and nothing of what goes in."""
    text = "h = MatMul(x, w1)  u = other.Plugin(x)  e = Add(h, u)  g = Relu(e)  y = MatMul(g, w2)"
    with pytest.raises(NothingToPrune, match=r"n2 \(Add\) takes a tensor whose shape is only known at run time"):
        toastc.prune(with_foreign(text, "e", tmp_path / "m.onnx"), 0.5)


def test_a_weight_that_is_an_output_as_well(tmp_path: Path) -> None:
    text = "t = Transpose<perm=[1, 0]>(w0)  z = MatMul(x, t)  h = MatMul(x, w1)  g = Relu(h)  y = MatMul(g, w2)"
    outputs = "float[b, 3, 8] y, float[b, 3, 16] z, float[8, 16] t"
    model = written(text, {"w0": (16, 8), "w1": (8, 16), "w2": (16, 8)}, outputs=outputs)
    onnx.save(model, tmp_path / "m.onnx")
    made = toastc.prune(tmp_path / "m.onnx", 0.5, recipe="magnitude", output=tmp_path / "o.onnx")
    assert made.report.verified is not None and made.report.verified["ok"]
    assert {n: c.width for n, c in made.plan.choices.items()} == {"blocks.0.mlp.hidden": 8}
    given = {"x": np.ones((1, 3, 8), np.float32)}
    dense, small = (session(tmp_path / n).run(None, given) for n in ("m.onnx", "o.onnx"))
    assert all(np.array_equal(a, b) for a, b in zip(dense[1:], small[1:], strict=True))


class Greatest(nn.Module):
    """An FFN of the greatest hidden channels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 32), nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc2(self.fc1(x).relu().topk(3, -1)[0])
        return made


def test_the_greatest_channels_are_mixed() -> None:
    """How many is no axis."""
    found = api.inspect(Greatest().eval(), example_inputs=(torch.zeros(2, 4, 8),))
    assert found["sites"] == [] and "mixes its channels" in reasons(found)


def test_onnx_by_its_longer_name(tmp_path: Path) -> None:
    model = written("h = MatMul(x, w1)  g = Relu(h)  y = MatMul(g, w2)", {"w1": (8, 16), "w2": (16, 8)})
    model.opset_import[0].domain = "ai.onnx"
    onnx.save(model, tmp_path / "m.onnx")
    made = toastc.prune(tmp_path / "m.onnx", 0.5, recipe="magnitude", output=tmp_path / "o.onnx")
    assert made.report.verified is not None and made.report.verified["ok"]


@pytest.mark.parametrize("kind", ["Trilu", "Inverse"])
def test_a_mask_made_by_a_node_whose_shape_only_the_file_tells(kind: str, tmp_path: Path) -> None:
    """It is written down again, or the pruned file would not be understood."""
    between = "s0 = MatMul(q, k)  s = Add(s0, mask)  p = Softmax(s)  m = MatMul(p, v)"
    model = attention(between, inputs="float[b, 3, 8] x, float[3, 3] mk")
    model.graph.node.insert(0, helper.make_node(kind, ["mk"], ["mask"], domain="com.microsoft", name="made"))
    model.graph.value_info.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [3, 3]))
    onnx.save(model, tmp_path / "m.onnx")
    ratios = {"attention": 0.5, "round_to": 1}
    made = toastc.prune(tmp_path / "m.onnx", ratios, recipe="magnitude", output=tmp_path / "o.onnx")
    assert made.report.verified is not None and made.report.verified["ok"]


def test_a_loop_keeps_the_inputs_it_has_to_have(tmp_path: Path) -> None:
    body = "body = b (int64 i, bool c) => (bool d, float[3] s) { d = Identity(c)  s = Constant<value = float[3] {1, 2, 3}>() }"
    text = f"h = MatMul(x, w1)  g = Relu(h)  y = MatMul(g, w2)  z = Loop (count) <{body}>"
    model = written(text, {"w1": (8, 16), "w2": (16, 8), "count": np.array(2)}, outputs="float[b, 3, 8] y, float[n, 3] z")
    model.graph.node[-1].input.append("")  # the condition
    onnx.save(model, tmp_path / "m.onnx")
    made = toastc.prune(tmp_path / "m.onnx", 0.5, recipe="magnitude", output=tmp_path / "o.onnx")
    assert made.report.verified is not None and made.report.verified["ok"]
