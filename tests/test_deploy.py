"""Files for a runtime: fused nodes say the same, fewer bits say nearly the same, whatever wrote the graph."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import gpu_bench
import models
import numpy as np
import onnx
import pytest
import torch
from conftest import Command, ZooFile
from zoo_exports import quiet
from zoo_models import FAMILIES

import toastc
from toastc import api
from toastc.calibration import Synthetic
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.graphs.onnx.builder import OnnxBuilder
from toastc.graphs.onnx.precision import finite
from toastc.passes import AllocateWidths, AnalyseLosses, CollectMoments, MatchSites, TimeBlocks
from toastc.passes.deploy.fuse import fuse_attention
from toastc.passes.state import State, run
from toastc.plans.cost import Target
from toastc.plans.plan import Keep
from toastc.report.page import write_page
from toastc.report.reading import read_report
from toastc.system.errors import ToastcError, VerificationFailed
from toastc.timing.kernels import Attention, better, kernel

RATIOS = {"attention": {"qk": 0.5, "vo": 0.25}, "ffn": 0.5, "round_to": 1}
EXPORTERS = ("dynamo18", "dynamo20-dyn", "dynamo23-dyn", "ts17-dyn", "onnxsim", "ort-dyn")
MODELS = ("swin_tiny", "swinv2_tiny", "xcit_tiny", "eva02_tiny", "torch_encoder", "hf_vit_sdpa", "beit_base")
CASES = [
    *(("deit_tiny", exporter) for exporter in EXPORTERS),
    *((model, "dynamo20-dyn") for model in MODELS),
    ("swin_tiny", "ts17"),
]


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(("name", "variant"), CASES, ids=lambda x: x)
def test_every_attention_becomes_one_node_before_and_after_pruning(
    name: str, variant: str, zoo_file: ZooFile, tmp_path: Path
) -> None:
    dense = zoo_file(name, variant)
    whole, pruned = (tmp_path / f"{n}.onnx" for n in ("whole", "pruned"))
    before = toastc.prune(dense, runtime="ort-cuda", output=whole).report
    after = toastc.prune(dense, RATIOS, recipe="magnitude", runtime="ort-cuda", output=pruned).report
    assert before.deployed is not None and after.deployed is not None and after.verified is not None
    assert kinds(whole)["Softmax"] == kinds(pruned)["Softmax"] == 0, before.notes
    assert kinds(whole)["MultiHeadAttention"] == kinds(pruned)["MultiHeadAttention"] == before.deployed["attentions"] > 0
    assert before.deployed["attentions"] == after.deployed["attentions"]
    assert max(before.deployed["worst"], after.deployed["worst"]) < 1e-5
    assert pruned.stat().st_size < whole.stat().st_size


def test_rows_are_split_and_never_moved(deit: Path) -> None:
    graph, fused = fuse_attention(OnnxGraph(load_model(deit)))
    found = Counter(op.type for op in graph.ops)
    assert fused.count == 2 and fused.left == ()
    assert found["Split"] == 2 and found["Transpose"] == 1  # that of the patches


def test_norms_and_activations_are_fused_too(deit: Path, tmp_path: Path) -> None:
    toastc.prune(deit, runtime="ort-cuda", output=tmp_path / "o.onnx")
    found = kinds(tmp_path / "o.onnx")
    assert found["SkipLayerNormalization"] == 4 and found["BiasGelu"] == 2


def test_what_is_fused_is_read_again(deit: Path, tmp_path: Path) -> None:
    toastc.prune(deit, RATIOS, recipe="magnitude", runtime="ort-cpu", output=tmp_path / "o.onnx")
    assert api.verify(deit, tmp_path / "o.onnx")["ok"]
    again = toastc.prune(tmp_path / "o.onnx", 0.5, output=tmp_path / "again.onnx").report
    assert again.verified is not None and again.verified["ok"] and again.after.macs < again.before.macs


def test_a_wrong_fusion_is_found_and_nothing_is_written(deit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = OnnxBuilder.attend
    monkeypatch.setattr(OnnxBuilder, "attend", lambda self, qkv, bias, heads, scale: right(self, qkv, bias, heads, 2 * scale))
    with pytest.raises(VerificationFailed, match="nothing was written"):
        toastc.prune(deit, runtime="ort-cpu", output=tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()


def test_a_mask_of_booleans_is_left_alone_and_named(zoo_file: ZooFile, tmp_path: Path) -> None:
    dense = zoo_file("toy_mqa")
    report = toastc.prune(dense, runtime="ort-cpu", output=tmp_path / "o.onnx").report
    assert any("shared between queries and keys" in note for note in report.notes)


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


NOT_KNOWN = [
    ({"runtime": "cpu"}, "for: is one of"),
    ({"dtype": "fp8"}, "dtype: is one of fp16, bf16"),
    ({"dtype": "fp16", "quantize": "int8"}, "one of the two"),
]


@pytest.mark.parametrize(("given", "match"), NOT_KNOWN, ids=str)
def test_what_is_not_known_is_refused(given: dict[str, str], match: str, deit: Path) -> None:
    with pytest.raises(ToastcError, match=match):
        toastc.prune(deit, **given)


def test_a_module_is_not_deployed() -> None:
    with quiet():
        model = FAMILIES["deit_tiny"].small()
    with pytest.raises(ToastcError, match="of ONNX files"):
        toastc.prune(model, 0.5, dtype="fp16")


def attention(**sizes: int | bool) -> Attention:
    return Attention(**{"name": "a", "heads": 6, "queries": 197, "keys": 197, "d_qk": 64, "d_v": 64, "biased": False,
                        "qk_macs": 1000, "v_macs": 1000} | sizes)  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "setting", "name", "why"),
    [
        ({}, "ort-cuda fp16", "flash", ""),
        ({"biased": True}, "ort-cuda fp16", "memory-efficient", "added to its scores"),
        ({"d_v": 48}, "torch fp16", "memory-efficient", "differ"),
        ({"d_qk": 6}, "ort-cuda fp16", "unfused", "d_qk 6 is no multiple of 8"),
        ({"d_v": 12}, "torch fp32", "memory-efficient", "half floats"),
        ({"d_v": 6}, "torch fp32", "math", "d_v 6"),
        ({}, "ort-cuda fp32", "unfused", "256 tokens"),
        ({"keys": 577, "queries": 577}, "ort-cuda fp32", "memory-efficient", "half floats"),
        ({"d_qk": 8}, "tensorrt fp16", "unfused", "16..256"),
        ({}, "tensorrt fp16", "fused", ""),
    ],
    ids=str,
)
def test_which_kernel_an_attention_gets(sizes: dict[str, int], setting: str, name: str, why: str) -> None:
    found, reason = kernel(attention(**sizes), setting)
    assert found == name and why in reason and bool(reason) == bool(why)


def test_the_next_faster_kernel_and_its_price() -> None:
    hint = better(attention(d_qk=6), "ort-cuda fp16", 100_000)
    assert hint == "unfused, because d_qk 6 is no multiple of 8; d_qk 8 and d_v 64 cost +2.0 % MACs and are memory-efficient"
    assert better(attention(), "ort-cuda fp16", 100_000) == ""


def test_kernels_before_and_after(deit: Path) -> None:
    report = toastc.prune(deit, {"attention": {"qk": 0.8, "vo": 0.5}, "round_to": 1}, recipe="magnitude", dry_run=True).report
    rows = [r for r in report.kernels if r["setting"] == "ort-cuda fp16"]
    assert [(r["before"], r["after"]) for r in rows] == [("flash", "unfused")] * 2
    assert all("no multiple of 8" in str(r["hint"]) for r in rows)


def test_kernels_of_a_file(deit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from toastc.cli import main

    assert main(["kernels", str(deit), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {r["setting"] for r in data["kernels"]} >= {"ort-cuda fp16", "torch fp16", "tensorrt fp16"}
    assert main(["kernels", str(deit)]) == 0
    assert "ort-cuda fp16: 2 flash" in capsys.readouterr().out


def test_kernels_of_a_file_with_odd_widths_say_what_a_faster_one_costs(deit: Path, tmp_path: Path, here: Command) -> None:
    odd = tmp_path / "odd.onnx"
    toastc.prune(deit, {"attention": {"qk": 0.8}, "round_to": 1}, recipe="magnitude", verify=False, output=odd)
    said = here("kernels", odd).stdout
    assert "ort-cuda fp16: 2 unfused" in said
    assert "is no multiple of 8; d_qk 8 and d_v 16 cost" in " ".join(said.split()) and "(and 1 more)" in said


def test_queries_and_values_are_as_wide_where_flash_needs_it(deit: Path, tmp_path: Path) -> None:
    report = toastc.prune(deit, target=0.7, dtype="fp16", runtime="ort-cuda", output=tmp_path / "o.onnx").report
    widths = {(r.site, r.coupling): r.kept for r in report.couplings}
    sites = {site for site, name in widths if name == "qk"}
    assert sites and all(widths[s, "qk"] == widths[s, "vo"] for s in sites)
    assert {r["after"] for r in report.kernels if r["setting"] == "ort-cuda fp16"} == {"flash"}


def test_unequal_widths_are_no_choice_where_flash_needs_equal_ones(deit: Path) -> None:
    graph = OnnxGraph(load_model(deit))
    data = Synthetic(graph.input_sizes(), 8, 0)
    state, _ = run([MatchSites(), CollectMoments(), AnalyseLosses()], State(graph, target=Target("macs", 0.7), data=data))
    for equal in (True, False):
        items = [i for s in state.sites if s.kind == "attention" for i in AllocateWidths(round_to=4, equal=equal).items(state, s)]
        assert items and all(w["qk"] == w["vo"] for i in items for w in i.widths) == equal


def test_a_latency_is_of_what_is_deployed(deit: Path) -> None:
    """What int8 gains need not be gained by width: the same share of the float model's time keeps more."""
    graph = OnnxGraph(load_model(deit))
    state = State(graph, target=Target("latency", 0.5), data=Synthetic(graph.input_sizes(), 8, 0))
    state, _ = run([MatchSites()], state)
    clock = {False: 4.0, True: 1.0}
    graph.stopwatch = lambda block: clock[block.int8] * (block.heads * (block.qk + block.vo) or block.hidden)  # type: ignore[method-assign]
    plain, small = (TimeBlocks(int8=int8)(state) for int8 in (False, True))
    assert plain.target == Target("latency", 0.5)
    gain = plain.total_time - small.total_time
    assert small.target is not None
    assert small.target.keep * small.total_time == pytest.approx(0.5 * plain.total_time) or small.target.keep == 1.0
    assert gain == pytest.approx(sum(t({}) for t in plain.times.values()) - sum(t({}) for t in small.times.values()))


def test_bench_counts_what_can_not_be_counted_any_more(deit: Path, tmp_path: Path) -> None:
    small = tmp_path / "o.onnx"
    report = toastc.prune(deit, RATIOS, quantize="int8", recipe="magnitude", output=small).report
    data = toastc.bench(deit, small, batches=(2,), seconds=0.01, threads=1, memory=False)
    assert data["ideal"] == pytest.approx(report.before.macs / report.after.macs)
    assert "peak_mb" not in data["rows"][0]["dense"]
    again = toastc.bench(small, small, batches=(2,), seconds=0.01, threads=1, memory=False)  # both in 8 bits
    assert again["ideal"] == 1.0


def test_a_report_of_a_file_in_8_bits_says_what_was_cut(deit: Path, tmp_path: Path) -> None:
    small = tmp_path / "o.onnx"
    report = toastc.prune(deit, RATIOS, quantize="int8", recipe="magnitude", output=small).report
    read = read_report(small)
    cut = {(r.site, r.coupling): r.kept for r in report.couplings if r.kept != r.original}
    assert {(r["site"], r["coupling"]): r["kept"] for r in read["couplings"]} == cut
    assert read["after"] == {"macs": report.after.macs, "params": None, "bytes": report.after.bytes}
    write_page(read, tmp_path / "page.html")
    assert "8-bit numbers" in (tmp_path / "page.html").read_text()


def test_bench_of_modules() -> None:
    with quiet():
        model = FAMILIES["deit_tiny"].small().eval()
        inputs = tuple(FAMILIES["deit_tiny"].inputs(False, 2).values())
        small = toastc.prune(model, 0.5, recipe="magnitude", example_inputs=inputs).model
        data = toastc.bench(model, small, example_inputs=inputs, batches=(1, 3), seconds=0.01)
    assert [(r["batch"], r["mode"]) for r in data["rows"]] == [(1, "eager"), (3, "eager")]
    assert data["ideal"] > 1.2


def test_no_gain_is_said(deit: Path) -> None:
    data = toastc.bench(deit, deit, batches=(1,), seconds=0.01, threads=1, memory=False)
    assert data["ideal"] == 1.0
    assert data["rows"][0]["speedup"] > 1.02 or any("same MACs" in note for note in data["notes"])


def test_not_verified_is_not_compared(deit: Path, tmp_path: Path) -> None:
    report = toastc.prune(deit, runtime="ort-cpu", verify=False, output=tmp_path / "o.onnx").report
    assert report.verified is None and report.deployed is not None and report.deployed["error"] is None
    assert kinds(tmp_path / "o.onnx")["MultiHeadAttention"] == 2


def test_the_gpu_bench_runs_without_a_gpu(tmp_path: Path) -> None:
    """What it measures is nothing here; that every step of it works is."""
    given = ["--device", "cpu", "--models", "deit_tiny_patch16_224", "--batches", "1", "--size", "64", "--seconds", "0.01"]
    with quiet():
        assert gpu_bench.main([*given, "--runtimes", "onnxruntime,eager", "--out", str(tmp_path / "g.json")]) == 0
    rows = json.loads((tmp_path / "g.json").read_text())["rows"]
    assert {r["variant"] for r in rows} == {"dense", "toast 0.76", "macs=0.6", "tokens"}
    assert {r["runtime"] for r in rows} == {"onnxruntime", "eager"}
    assert len({r["fused_attentions"] for r in rows}) == 1
    assert all(r["ideal"] > 1.2 for r in rows if r["variant"] != "dense")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_the_gpu_bench_says_that_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_bench.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


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
