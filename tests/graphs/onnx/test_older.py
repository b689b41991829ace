"""Files of opsets 9 to 12 are made into newer ones, compared with what they were, pruned and proven; or it is said why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import parser
from zoo_exports import quiet
from zoo_models import FAMILIES

import toastc
from toastc.graphs.onnx import older
from toastc.system.errors import ToastcError

RATIOS = {"attention": 0.5, "ffn": 0.5, "round_to": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("old")
    model = FAMILIES["deit_tiny"].small().eval()
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    for opset in (9, 11, 12):
        with quiet():
            torch.onnx.export(
                model, (torch.randn(2, 3, 32, 32),), made / f"{opset}.onnx", dynamo=False, opset_version=opset,
                input_names=["x"], dynamic_axes={"x": {0: "batch"}},
            )  # fmt: skip
    return made


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_an_old_file_is_pruned_and_proven(opset: int, folder: Path, tmp_path: Path) -> None:
    report = toastc.prune(folder / f"{opset}.onnx", RATIOS, recipe="magnitude", output=tmp_path / "s.onnx").report
    assert report.verified is not None and report.verified["ok"]
    assert [n for n in report.notes if f"is of opset {opset}; opset 17 was made of it first" in n]
    assert len(report.sites) == 4
    assert onnx.load(tmp_path / "s.onnx").opset_import[0].version == 17
    assert toastc.verify(folder / f"{opset}.onnx", tmp_path / "s.onnx")["ok"]


def test_a_model_in_memory_is_taken_as_well(folder: Path) -> None:
    made = toastc.prune(onnx.load(folder / "11.onnx"), RATIOS, recipe="magnitude")
    assert any("is of opset 11" in note for note in made.report.notes)
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    assert onnxruntime.InferenceSession(made.model.SerializeToString()).run(None, {"x": x})[0].shape[0] == 3


def test_one_that_can_not_be_converted_says_so(tmp_path: Path) -> None:
    text = '<ir_version: 3, opset_import: ["": 8]> g (int64[1] n) => (float[k] y) { y = ConstantOfShape(n) }'
    model = parser.parse_model(text)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ToastcError, match=r"opset 8 is old, and can not be made into 17 .*; export it with opset 13 or newer"):
        toastc.prune(tmp_path / "m.onnx", 0.5)


def test_one_whose_outputs_change_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that is wrong: what it makes is run beside the original before anything else is done."""
    right = older.ConvertVersionPass

    class Wrong(right):  # type: ignore[misc, valid-type]
        def call(self, model: object) -> object:
            made = super().call(model)
            for node in made.model.graph:
                if node.op_type == "Erf":
                    node.op_type = "Tanh"
            return made

    monkeypatch.setattr(older, "ConvertVersionPass", Wrong)
    with pytest.raises(ToastcError, match=r"is of opset 11; made into 17, its outputs are .* apart; export it with"):
        toastc.prune(folder / "11.onnx", RATIOS, recipe="magnitude", output=tmp_path / "s.onnx")
    assert not (tmp_path / "s.onnx").exists()
