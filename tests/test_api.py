"""toastc.prune in Python: every kind of model in, the same kind out; odd weights; the proof for other people's tests."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest
import torch
from conftest import RATIOS
from onnx import TensorProto, helper, numpy_helper
from zoo_exports import quiet
from zoo_models import FAMILIES

import toastc
from toastc.graphs.onnx import OnnxGraph
from toastc.passes.prove import rms_apart
from toastc.testing import assert_equivalent

torch.set_num_threads(1)


def run(model: onnx.ModelProto | Path, batch: int = 2) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((batch, 3, 32, 32)).astype(np.float32)
    return models.run_file(model, x)


def test_a_path_gives_a_proto(deit: Path, tmp_path: Path) -> None:
    result = toastc.prune(str(deit), RATIOS, recipe="magnitude")
    assert isinstance(result.model, onnx.ModelProto)
    toastc.prune(deit, RATIOS, recipe="magnitude", output=tmp_path / "small.onnx")
    assert np.array_equal(run(result.model), run(tmp_path / "small.onnx"))
    assert result.report.after.params < result.report.before.params


def test_a_proto_an_ir_model_and_a_surgeon_graph_come_back_as_what_they_were(deit: Path) -> None:
    expected = run(toastc.prune(deit, RATIOS, recipe="magnitude").model)
    proto = onnx.load(deit)
    before = proto.SerializeToString()
    small = toastc.prune(proto, RATIOS, recipe="magnitude").model
    assert isinstance(small, onnx.ModelProto)
    assert proto.SerializeToString() == before
    small_ir = toastc.prune(ir.load(deit), RATIOS, recipe="magnitude").model
    assert isinstance(small_ir, ir.Model)
    graph = gs.import_onnx(onnx.load(deit))
    small_gs = toastc.prune(graph, RATIOS, recipe="magnitude").model
    assert isinstance(small_gs, gs.Graph)
    for made in (small, ir.to_proto(small_ir), gs.export_onnx(small_gs)):
        assert np.allclose(run(made), expected, atol=1e-5)


def test_all_zero_ratios_return_the_file_as_it_is(deit: Path) -> None:
    result = toastc.prune(deit, {"attention": 0, "ffn": 0})
    assert result.model.SerializeToString() == onnx.load(deit).SerializeToString()
    assert not result.plan


def test_equivalence_for_other_peoples_tests(deit: Path, tmp_path: Path) -> None:
    result = toastc.prune(deit, RATIOS, recipe="magnitude", output=tmp_path / "small.onnx")
    assert assert_equivalent(deit, tmp_path / "small.onnx", result.plan) <= 1e-4
    assert assert_equivalent(onnx.load(deit), onnx.load(tmp_path / "small.onnx"), result.plan) <= 1e-4
    moved = onnx.load(deit)
    for other in moved.graph.initializer:  # damage outside every site
        if other.name.startswith("head"):
            other.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(other) + 1, other.name))
    with pytest.raises(AssertionError, match="not equivalent"):
        assert_equivalent(moved, tmp_path / "small.onnx", result.plan)


def test_torch_modules_prove_themselves() -> None:
    family = FAMILIES["deit_tiny"]
    with quiet():
        model, args = family.small().eval(), tuple(family.inputs(False, 2).values())
        small = toastc.prune(model, RATIOS, recipe="magnitude", example_inputs=args).model
        assert assert_equivalent(model, small, example_inputs=args) <= 1e-4
        with torch.no_grad():
            small.get_parameter("blocks.0.mlp.fc1.weight").mul_(2)
            small.get_parameter("head.weight").mul_(2)
        with pytest.raises(AssertionError):
            assert_equivalent(model, small, example_inputs=args)


def test_the_original_module_is_untouched_and_shares_nothing() -> None:
    family = FAMILIES["deit_tiny"]
    with quiet():
        model, args = family.small().eval(), tuple(family.inputs(False, 2).values())
        before = {k: v.clone() for k, v in model.state_dict().items()}
        small = toastc.prune(model, RATIOS, recipe="magnitude", example_inputs=args).model
        for p in small.parameters():
            p.data.zero_()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_guessing_inputs_and_training_mode_are_explained() -> None:
    with pytest.raises(toastc.system.errors.ToastcError, match="example_inputs"):
        toastc.prune(torch.nn.Linear(2, 2).eval(), 0.5)
    with pytest.raises(toastc.system.errors.ToastcError, match="eval"):
        toastc.prune(torch.nn.Linear(2, 2), 0.5, example_inputs=(torch.zeros(2, 2),))


def converted(path: Path, target: Path, kind: int) -> Path:
    """The same graph in another float type, inputs and outputs included."""
    model = onnx.load(path)
    array_of = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: None}[kind]
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(weight)
            if array_of is None:
                import ml_dtypes

                array_of_weight = array.astype(ml_dtypes.bfloat16)
                weight.CopyFrom(helper.make_tensor(weight.name, kind, array.shape, array_of_weight.tobytes(), raw=True))
            else:
                weight.CopyFrom(numpy_helper.from_array(array.astype(array_of), weight.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    del model.graph.value_info[:]
    onnx.save(model, target)
    return target


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_other_float_types_keep_their_type_and_are_proven(deit: Path, tmp_path: Path, kind: int) -> None:
    other = converted(deit, tmp_path / "dense.onnx", kind)
    result = toastc.prune(other, RATIOS, output=tmp_path / "small.onnx")
    assert result.report.verified["ok"]
    small = onnx.load(tmp_path / "small.onnx")
    assert {i.data_type for i in small.graph.initializer} <= {kind, TensorProto.INT64}
    assert small.graph.output[0].type.tensor_type.elem_type == kind


def test_a_target_is_met_and_not_exceeded(deit: Path) -> None:
    report = toastc.prune(deit, target="macs=0.6").report
    assert 0.45 * report.before.macs < report.after.macs <= 0.6 * report.before.macs


@pytest.mark.parametrize(
    ("target", "says"), [("macs=0.01", "smallest"), ("macs=2", "fraction kept"), ("speed=1", "macs"), ("macs=x", "form")]
)
def test_targets_that_make_no_sense(deit: Path, target: str, says: str) -> None:
    with pytest.raises(toastc.system.errors.ToastcError, match=says):
        toastc.prune(deit, target=target)


def test_exactly_one_of_ratios_target_and_plan(deit: Path) -> None:
    with pytest.raises(toastc.system.errors.ToastcError, match="one of"):
        toastc.prune(deit)


def test_a_plan_for_another_model_is_refused(deit: Path) -> None:
    plan = toastc.Plan({"blocks.7.attn.qk": toastc.plans.plan.Keep(np.arange(4)[None])})
    with pytest.raises(toastc.system.errors.ToastcError, match="no such coupling"):
        toastc.prune(deit, plan=plan)


def test_of_images_of_any_size_the_first_axis_is_the_batch(tmp_path: Path) -> None:
    """Not the height, even where the batch is fixed and the height is not."""
    model = models.convnet()
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, "height", "width"), strict=True):
        dim.CopyFrom(onnx.TensorShapeProto.Dimension(**{"dim_param" if isinstance(size, str) else "dim_value": size}))
    model.graph.output[0].type.tensor_type.shape.dim[0].CopyFrom(onnx.TensorShapeProto.Dimension(dim_value=1))
    free = OnnxGraph(ir.from_proto(model))
    height, width = free.shape(free.graph.inputs[0])[2:]
    assert free.batch == 1
    assert free.totals()[0] == models.DIM * 3 * models.PATCH**2 * (height // 4) * (width // 4)
    path = models.save(model, tmp_path / "free.onnx")
    timed = toastc.bench(path, path, batches=(8,), seconds=0.01, memory=False)
    assert [row["batch"] for row in timed["rows"]] == [1]
    assert "the file has a fixed batch size; only that one was timed" in timed["notes"]


def test_how_far_outputs_are_apart_where_some_are_masked(tmp_path: Path) -> None:
    """Infinite in both models: no difference, and no NaN either."""
    a, b = np.array([[1.0, 2.0, -np.inf]], np.float32), np.array([[1.0, 1.0, -np.inf]], np.float32)
    assert np.isclose(rms_apart([(a, b)]), (1 / 5) ** 0.5)


def test_synthetic_images_are_called_so(tmp_path: Path) -> None:
    dense = models.save(models.vit(), tmp_path / "m.onnx")
    data = np.random.default_rng(0).standard_normal((16, 3, 16, 16)).astype(np.float32)
    for given, word in ((None, "synthetic images"), (data, "calibration inputs")):
        made = toastc.prune(dense, target="macs=0.8", data=given, quantize="int8", output=tmp_path / "o.onnx").report
        assert made.measured is not None and made.measured["of"] == word


def test_moments_that_nobody_measured_are_missed_before_anything_is_written(tmp_path: Path) -> None:
    dense = models.save(models.vit(), tmp_path / "m.onnx")
    with pytest.raises(toastc.system.errors.ToastcError, match="measures nothing here"):
        toastc.prune(dense, RATIOS, recipe="magnitude", moments_out=tmp_path / "moments", output=tmp_path / "o.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx"]
