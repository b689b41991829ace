"""Where the model is on a device, its tensors stay there: the same on the CPU, with tensors of torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from drawn import batches

import toastc
from toastc.graphs.onnx import bound
from toastc.plans.plan import Keep


@pytest.fixture
def _bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "DEVICES", {"cpu": "cpu"})


@pytest.mark.usefixtures("_bound")
def test_bools_come_and_go_and_no_number_is_copied() -> None:
    info = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Not", ["m"], ["n"]), onnx.helper.make_node("Add", ["x", "x"], ["y"])]
    graph = onnx.helper.make_graph(
        nodes, "g", [info("m", 9, [2]), info("x", 1, [2])], [info("n", 9, [2]), info("y", 1, [2])]
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    run = bound.running(ort.InferenceSession(model.SerializeToString()), "cpu")
    n, y = run({"m": np.array([True, False]), "x": torch.tensor([1.0, 2.0])}, ["n", "y"])
    assert n.dtype is torch.bool and n.tolist() == [False, True]
    assert isinstance(y, torch.Tensor) and y.tolist() == [2.0, 4.0]


@pytest.mark.parametrize("recipe", ["default", "quick"])
def test_a_whole_run_stays_on_the_device(tiny: Path, tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {}
    for kind, devices in (("copied", {}), ("bound", {"cpu": "cpu"})):
        monkeypatch.setattr(bound, "DEVICES", devices)
        made[kind] = toastc.prune(tiny, target="macs=0.6", data=batches(), recipe=recipe, output=tmp_path / f"{kind}.onnx")
    copied, stayed = made["copied"], made["bound"]
    assert stayed.moments is not None and all(isinstance(s.scatter, torch.Tensor) for s in stayed.moments.sums.values())
    assert copied.plan.choices.keys() == stayed.plan.choices.keys()
    for name, choice in copied.plan.choices.items():
        other = stayed.plan.choices[name]
        assert choice.width == other.width and (not isinstance(choice, Keep) or np.array_equal(choice.index, other.index)), name
    errors = [run.report.measured["error"] for run in (copied, stayed)]
    assert errors[1] == pytest.approx(errors[0], rel=0.05)
