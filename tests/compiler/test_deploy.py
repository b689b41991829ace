"""A file made for a runtime: what is not known is refused, what was not gained is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import kinds
from zoo_exports import quiet
from zoo_models import FAMILIES

import toastc
from toastc.calibration import Synthetic
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.passes import MatchSites, TimeBlocks
from toastc.passes.state import State, run
from toastc.plans.cost import Target
from toastc.report.page import write_page
from toastc.report.reading import read_report
from toastc.system.errors import ToastcError

RATIOS = {"attention": {"qk": 0.5, "vo": 0.25}, "ffn": 0.5, "round_to": 1}


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


def test_a_report_of_a_file_in_8_bits_says_what_was_cut(deit: Path, tmp_path: Path) -> None:
    small = tmp_path / "o.onnx"
    report = toastc.prune(deit, RATIOS, quantize="int8", recipe="magnitude", output=small).report
    read = read_report(small)
    cut = {(r.site, r.coupling): r.kept for r in report.couplings if r.kept != r.original}
    assert {(r["site"], r["coupling"]): r["kept"] for r in read["couplings"]} == cut
    assert read["after"] == {"macs": report.after.macs, "params": None, "bytes": report.after.bytes}
    write_page(read, tmp_path / "page.html")
    assert "8-bit numbers" in (tmp_path / "page.html").read_text()


def test_no_gain_is_said(deit: Path) -> None:
    data = toastc.bench(deit, deit, batches=(1,), seconds=0.01, threads=1, memory=False)
    assert data["ideal"] == 1.0
    assert data["rows"][0]["speedup"] > 1.02 or any("same MACs" in note for note in data["notes"])


def test_not_verified_is_not_compared(deit: Path, tmp_path: Path) -> None:
    report = toastc.prune(deit, runtime="ort-cpu", verify=False, output=tmp_path / "o.onnx").report
    assert report.verified is None and report.deployed is not None and report.deployed["error"] is None
    assert kinds(tmp_path / "o.onnx")["MultiHeadAttention"] == 2
