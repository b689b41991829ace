"""Fewer bits say nearly the same: int8, half floats, and what stays in float32."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from conftest import ZooFile
from models import kinds

import toastc
from toastc.graphs.onnx.precision import finite
from toastc.plans.plan import Keep
from toastc.system.errors import ToastcError

RATIOS = {"attention": {"qk": 0.5, "vo": 0.25}, "ffn": 0.5, "round_to": 1}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["deit_tiny", "swin_tiny", "eva02_tiny"])
def test_half_floats(name: str, dtype: str, zoo_file: ZooFile, tmp_path: Path) -> None:
    dense = zoo_file(name)
    report = toastc.prune(dense, RATIOS, recipe="magnitude", dtype=dtype, output=tmp_path / "o.onnx").report
    made = onnx.load(tmp_path / "o.onnx")
    onnx.checker.check_model(made, full_check=True)
    before = onnx.load(dense).graph
    assert [v.type for v in (*made.graph.input, *made.graph.output)] == [v.type for v in (*before.input, *before.output)]
    half = onnx.TensorProto.FLOAT16 if dtype == "fp16" else onnx.TensorProto.BFLOAT16
    matrices = [t for t in made.graph.initializer if len(t.dims) == 2 and t.data_type != onnx.TensorProto.INT64]
    assert matrices and {t.data_type for t in matrices} == {half}
    assert report.deployed is not None and 0 < report.deployed["error"] < (5e-3 if dtype == "fp16" else 3e-2)
    assert made.ByteSize() < 0.75 * dense.stat().st_size
    assert "which the dense model does not" in toastc.verify(dense, tmp_path / "o.onnx")["reason"]


def test_what_sums_squares_stays_float32(zoo_file: ZooFile, tmp_path: Path) -> None:
    dense = zoo_file("deit_tiny", "ts17")
    toastc.prune(dense, dtype="fp16", output=tmp_path / "o.onnx")
    made = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "o.onnx"))
    types = {v.name: v.type.tensor_type.elem_type for v in made.graph.value_info}
    delicate = [n.output[0] for n in made.graph.node if n.op_type in ("Sqrt", "Pow", "Exp", "ReduceMean")]
    assert all(types[name] == onnx.TensorProto.FLOAT for name in delicate if name in types)


def test_masks_stay_finite() -> None:
    import onnx_ir as ir

    lowest = np.array([np.finfo(np.float32).min, -np.inf, 1.0], np.float32)
    got = finite(lowest, ir.DataType.FLOAT16)
    assert got.dtype == np.float16 and got[0] == np.finfo(np.float16).min and np.isneginf(got[1]) and got[2] == 1


def test_int8(deit: Path, tmp_path: Path) -> None:
    shape = [d.dim_value for d in onnx.load(deit).graph.input[0].type.tensor_type.shape.dim]
    data = np.random.default_rng(0).standard_normal((24, *shape[1:])).astype(np.float32)
    report = toastc.prune(deit, RATIOS, quantize="int8", runtime="ort-cpu", data=data, output=tmp_path / "o.onnx").report
    found, weights = kinds(tmp_path / "o.onnx"), onnx.load(tmp_path / "o.onnx").graph.initializer
    linears = int(report.notes[-1].split()[0])
    assert found["DequantizeLinear"] == found["QuantizeLinear"] + linears  # one for what is read, one for each weight
    assert sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2 for t in weights) == linears
    assert report.deployed is not None and report.deployed["of"] == "calibration inputs"
    assert 1e-4 < report.deployed["error"] < 0.1


def test_int8_does_without_channels_that_would_spoil_the_scale(tmp_path: Path) -> None:
    """A hidden channel whose values are three hundred times those of the others, and whose weight makes up for it."""
    weights, loud = models.weights(), 5
    for name in ("weight", "bias"):
        weights[f"blocks.0.mlp.fc1.{name}"][..., loud] *= 300
    weights["blocks.0.mlp.fc2.weight"][loud] /= 150
    file = models.save(models.vit(dense=weights), tmp_path / "loud.onnx")
    data, kept = np.random.default_rng(0).standard_normal((32, 3, 16, 16)).astype(np.float32), []
    for quantize in (None, "int8"):
        made = toastc.prune(file, {"ffn": 0.25}, data=data, quantize=quantize, output=tmp_path / "o.onnx")
        choice = made.plan.get("blocks.0.mlp", "hidden")
        assert isinstance(choice, Keep)
        kept.append(loud in choice.index)
    assert kept == [True, False]


def test_int8_without_zero_points_for_tensorrt(deit: Path, tmp_path: Path) -> None:
    toastc.prune(deit, quantize="int8", runtime="tensorrt", output=tmp_path / "o.onnx")
    made = onnx.load(tmp_path / "o.onnx")
    known = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    zeros = [known[n.input[2]] for n in made.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert zeros and all(z.dtype == np.int8 and not z.any() for z in zeros)
    assert not {n.domain for n in made.graph.node} - {""}


def test_int8_is_the_same_twice(deit: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        toastc.prune(deit, quantize="int8", output=tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_widths_for_int8_are_multiples_of_16(deit: Path, tmp_path: Path) -> None:
    report = toastc.prune(deit, target=0.6, recipe="svd", quantize="int8", output=tmp_path / "o.onnx").report
    widths = {row.kept for row in report.couplings if row.coupling == "hidden" and row.kept < row.original}
    assert widths and all(w % 16 == 0 for w in widths)


@pytest.mark.parametrize(("more", "kept"), [({}, 64), ({"round_to": 8}, 56)])
def test_a_ratio_file_for_int8_rounds_to_16_unless_it_says_otherwise(
    more: dict[str, int], kept: int, deit: Path, tmp_path: Path
) -> None:
    asked = {"ffn": 0.72, **more}  # 54 of 192 channels
    report = toastc.prune(deit, asked, quantize="int8", recipe="magnitude", verify=False, output=tmp_path / "o.onnx").report
    assert {row.kept for row in report.couplings if row.coupling == "hidden"} == {kept}


def test_int8_of_a_fixed_batch(deit: Path, tmp_path: Path) -> None:
    model = onnx.load(deit)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 20
    onnx.save(model, tmp_path / "fixed.onnx")
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    data = np.random.default_rng(0).standard_normal((50, *shape[1:])).astype(np.float32)
    report = toastc.prune(tmp_path / "fixed.onnx", quantize="int8", data=data, output=tmp_path / "o.onnx").report
    assert report.deployed is not None and report.deployed["inputs"] == 20


def test_int8_of_half_floats_is_refused(deit: Path, tmp_path: Path) -> None:
    toastc.prune(deit, dtype="fp16", output=tmp_path / "half.onnx")
    with pytest.raises(ToastcError, match="computes in float16"):
        toastc.prune(tmp_path / "half.onnx", quantize="int8", output=tmp_path / "o.onnx")
