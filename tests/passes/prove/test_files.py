"""A pruned file that is not what its plan says is not proven, and the reason is given: good files with one thing changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from handwritten import LINEARS, SIZES, saved, words, written
from onnx import helper, numpy_helper

import toastc

TEXT = """
    z = MatMul(x, wqkv)  q0, k0, v0 = Split<axis=-1>(z, thirds)
    q1 = Reshape(q0, apart)  k1 = Reshape(k0, apart)  v1 = Reshape(v0, apart)
    q = Transpose<perm=[0, 2, 1, 3]>(q1)  k = Transpose<perm=[0, 2, 3, 1]>(k1)  v = Transpose<perm=[0, 2, 1, 3]>(v1)
    s = MatMul(q, k)  p = Softmax<axis=-1>(s)  m = MatMul(p, v)
    t = Transpose<perm=[0, 2, 1, 3]>(m)  j = Reshape(t, join)  o = MatMul(j, wo)
    u = MatMul(o, w1)  h = Add(u, b1)  g = Relu(h)  y = MatMul(g, w2)
"""
SHAPES = {"wqkv": (8, 24), "thirds": np.array([8, 8, 8]), "w1": (8, 16), "b1": (16,), "w2": (16, 8)}
KEY = "toastc.plan"
Change = Callable[[onnx.ModelProto], None]


def dense_model() -> onnx.ModelProto:
    return written(TEXT, {**SIZES, "wo": LINEARS["wo"], **SHAPES})


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(dense_model(), tmp_path_factory.mktemp("dense"))


def pruned(dense: Path, folder: Path, share: float = 0.5) -> onnx.ModelProto:
    made = toastc.prune(dense, {"attention": share, "ffn": share, "round_to": 1}, recipe="magnitude", output=folder / "good.onnx")
    assert len(made.plan.choices) == 3 and toastc.verify(dense, folder / "good.onnx")["ok"]
    return onnx.load(folder / "good.onnx")


def reason(dense: Path, model: onnx.ModelProto, folder: Path) -> str:
    onnx.save(model, folder / "changed.onnx")
    found = toastc.verify(dense, folder / "changed.onnx")
    assert not found["ok"]
    return str(found["reason"])


def made_by(model: onnx.ModelProto, kind: str, number: int = 0) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == kind][number]


def weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(w for w in model.graph.initializer if w.name == name)


def put(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = weight(model, name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).copy(), name))


def plan_text(model: onnx.ModelProto) -> str:
    return next(entry.value for entry in model.metadata_props if entry.key == KEY)


def with_plan(model: onnx.ModelProto, text: str) -> None:
    next(entry for entry in model.metadata_props if entry.key == KEY).value = text


def a_site_that_is_not_there(model: onnx.ModelProto) -> None:
    plan = json.loads(plan_text(model))
    name = next(name for name in plan["choices"] if name.endswith(".hidden"))
    with_plan(model, json.dumps({**plan, "choices": {**plan["choices"], "elsewhere.hidden": plan["choices"][name]}}))


def hidden_shown(model: onnx.ModelProto) -> None:
    hidden = made_by(model, "Relu").output[0]
    model.graph.output.append(helper.make_tensor_value_info(hidden, onnx.TensorProto.FLOAT, None))


def no_first_bias(model: onnx.ModelProto) -> None:
    add, relu = made_by(model, "Add"), made_by(model, "Relu")
    relu.input[0] = add.input[0]
    model.graph.node.remove(add)


def one_channel_out_of_place(model: onnx.ModelProto) -> None:
    for name, axis in (("w1", 1), ("b1", 0), ("w2", 0)):
        put(model, name, lambda w, axis=axis: np.roll(w, 1, axis))  # type: ignore[misc]


def a_hair_off(model: onnx.ModelProto) -> None:
    put(model, "w2", lambda w: w + np.float32(1e-7))


def wider_in_between(model: onnx.ModelProto) -> None:
    put(model, "wo", lambda w: np.concatenate([w, w[:, :1]], 1))
    put(model, "w1", lambda w: np.concatenate([w, w[:1]], 0))


def rows_that_nobody_planned(model: onnx.ModelProto) -> None:
    split = made_by(model, "Split")
    put(model, made_by(model, "MatMul").input[1], lambda w: np.concatenate([w, w[:, :2]], 1))
    put(model, split.input[1], lambda sizes: np.append(sizes, 2))
    split.output.append("more")
    model.graph.output.append(helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, None))


CHANGED: dict[str, tuple[Change, str]] = {
    "a site that is not there": (a_site_that_is_not_there, "elsewhere: planned, but not found in the dense model"),
    "hidden channels are an output": (hidden_shown, "planned, but not found in the pruned model"),
    "the first bias is gone": (no_first_bias, "has no counterpart in the pruned model"),
    "channels in another order": (one_channel_out_of_place, "numbers that the plan keeps are not those of the dense model"),
    "a hair off": (a_hair_off, "numbers that the plan keeps are not those of the dense model"),
    "wider in between": (wider_in_between, "the pruned weight of shape (8, 9) can not be padded to (8, 8)"),
    "rows that nobody planned": (rows_that_nobody_planned, "keeps 2 other rows, the dense one has 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_one_thing_changed(case: str, dense: Path, tmp_path: Path) -> None:
    change, says = CHANGED[case]
    model = pruned(dense, tmp_path)
    change(model)
    found = reason(dense, model, tmp_path)
    assert says in found, found


def test_the_plan_of_another_file(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    model, other = pruned(dense, tmp_path), pruned(dense, tmp_path / "other", 0.25)
    with_plan(model, plan_text(other))
    assert "the plan keeps" in reason(dense, model, tmp_path)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, onnx.ModelProto]:
    """An FFN of words without biases; what goes has a mean, which a new bias takes over."""
    folder = tmp_path_factory.mktemp("shifted")
    dense, ids = saved(words(), folder), np.random.default_rng(0).integers(0, 20, (16, 6))
    toastc.prune(dense, {"ffn": 0.5, "round_to": 1}, recipe="corp", data=[{"ids": ids}], output=folder / "small.onnx")
    assert toastc.verify(dense, folder / "small.onnx")["ok"]
    return dense, onnx.load(folder / "small.onnx")


def test_a_shift_without_its_bias(shifted: tuple[Path, onnx.ModelProto], tmp_path: Path) -> None:
    dense, model = shifted[0], onnx.ModelProto()
    model.CopyFrom(shifted[1])
    add = made_by(model, "Add")
    next(node for node in model.graph.node if node.output[0] == add.input[0]).output[0] = add.output[0]
    model.graph.node.remove(add)
    assert "the plan shifts a bias, the pruned model has none" in reason(dense, model, tmp_path)
