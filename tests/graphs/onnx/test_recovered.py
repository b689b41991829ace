"""Quantised files, in every form ONNX Runtime writes: float weights taken back, pruned, proven, and quantised again if asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from zoo_exports import quiet
from zoo_models import FAMILIES

import toastc
from toastc.graphs.onnx import load_model, write_model
from toastc.system.errors import ToastcError

RATIOS = {"attention": 0.5, "ffn": 0.5, "round_to": 4}
FORMS = ("dynamic", "qdq", "operators", "four bits")
X = np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32)


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.feeds: Iterator[dict[str, np.ndarray]] = iter(
            [{"x": rng.standard_normal((2, 3, 32, 32)).astype(np.float32)} for _ in range(8)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("quantised")
    onnxruntime.set_default_logger_severity(3)
    with quiet():
        model = FAMILIES["deit_tiny"].small().eval()
        torch.onnx.export(
            model, (torch.randn(2, 3, 32, 32),), made / "float.onnx", dynamo=False, opset_version=17, input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
        )  # fmt: skip
        quantize_dynamic(made / "float.onnx", made / "dynamic.onnx")
        quantize_static(made / "float.onnx", made / "qdq.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
        quantize_static(made / "float.onnx", made / "operators.onnx", Reader(), quant_format=QuantFormat.QOperator)
        bits = MatMulNBitsQuantizer(onnx.load(made / "float.onnx"), block_size=32, is_symmetric=False)
        bits.process()
        onnx.save(bits.model.model, made / "four bits.onnx")
    return made


def outputs(path: Path) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(path).run(None, {"x": X})[0])


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("form", FORMS)
def test_its_floats_are_nearer_to_the_model_it_was_made_of(form: str, folder: Path, tmp_path: Path) -> None:
    write_model(load_model(folder / f"{form}.onnx"), tmp_path / "back.onnx")
    dense = outputs(folder / "float.onnx")
    assert apart(outputs(tmp_path / "back.onnx"), dense) <= 1.001 * apart(outputs(folder / f"{form}.onnx"), dense)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_pruned_and_proven(form: str, folder: Path, tmp_path: Path) -> None:
    report = toastc.prune(folder / f"{form}.onnx", RATIOS, recipe="magnitude", output=tmp_path / "s.onnx").report
    assert report.verified is not None and report.verified["ok"]
    assert any("the file is quantised; its float weights were taken back first" in note for note in report.notes)
    assert len(report.sites) == 4
    assert not any("Q" in n.op_type or "Integer" in n.op_type for n in onnx.load(tmp_path / "s.onnx").graph.node)


def test_and_quantised_again(folder: Path, tmp_path: Path) -> None:
    made = toastc.prune(
        folder / "qdq.onnx", RATIOS, output=tmp_path / "s.onnx", data=X, runtime="ort-cpu", quantize="int8", recipe="magnitude"
    )
    assert made.report.verified is not None and made.report.verified["ok"]
    assert "QuantizeLinear" in {n.op_type for n in onnx.load(tmp_path / "s.onnx").graph.node}


def test_what_has_no_floats_is_refused(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (uint8[2, 4] x, float s) => (float[2, 4] y) { y = DequantizeLinear(x, s) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(ToastcError):
        toastc.prune(tmp_path / "m.onnx", 0.5)
    text = (
        '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> g (float[2, 4] x) => (float[2, 4] y)'
        " { y = com.microsoft.QAttention(x, x, x, x, x) }"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(ToastcError, match=r"is quantised \(QAttention\); prune the float model and quantise the result"):
        toastc.prune(tmp_path / "m.onnx", 0.5)
