"""Which kernel an attention gets, what a faster one costs, and the benches that say it."""

from __future__ import annotations

import json
from pathlib import Path

import gpu_bench
import pytest
import torch
from conftest import Command
from zoo_exports import quiet
from zoo_models import FAMILIES

import toastc
from toastc.calibration import Synthetic
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.passes import AllocateWidths, AnalyseLosses, CollectMoments, MatchSites
from toastc.passes.state import State, run
from toastc.plans.cost import Target
from toastc.timing.kernels import Attention, better, kernel

RATIOS = {"attention": {"qk": 0.5, "vo": 0.25}, "ffn": 0.5, "round_to": 1}


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


def test_bench_counts_what_can_not_be_counted_any_more(deit: Path, tmp_path: Path) -> None:
    small = tmp_path / "o.onnx"
    report = toastc.prune(deit, RATIOS, quantize="int8", recipe="magnitude", output=small).report
    data = toastc.bench(deit, small, batches=(2,), seconds=0.01, threads=1, memory=False)
    assert data["ideal"] == pytest.approx(report.before.macs / report.after.macs)
    assert "peak_mb" not in data["rows"][0]["dense"]
    again = toastc.bench(small, small, batches=(2,), seconds=0.01, threads=1, memory=False)  # both in 8 bits
    assert again["ideal"] == 1.0


def test_bench_of_modules() -> None:
    with quiet():
        model = FAMILIES["deit_tiny"].small().eval()
        inputs = tuple(FAMILIES["deit_tiny"].inputs(False, 2).values())
        small = toastc.prune(model, 0.5, recipe="magnitude", example_inputs=inputs).model
        data = toastc.bench(model, small, example_inputs=inputs, batches=(1, 3), seconds=0.01)
    assert [(r["batch"], r["mode"]) for r in data["rows"]] == [(1, "eager"), (3, "eager")]
    assert data["ideal"] > 1.2


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
