"""Every way of writing an attention or an FFN ends in something smaller that is proven, or in a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plumbing import Attention, Ffn, X
from reliable.plumbing import ATTENTION, outcome, run, silent
from zoo_exports import quiet

import toastc

SEEDS = [*range(20), 115, 175, 250]  # the last three: two rows of shuffles, norms between linears


@pytest.mark.parametrize("file", [False, True], ids=["module", "file"])
@pytest.mark.parametrize("seed", SEEDS)
def test_attentions(seed: int, file: bool, tmp_path: Path) -> None:
    model = Attention(seed)
    cut, reasons = outcome(model, {"attention": ATTENTION[seed % 2]}, tmp_path, file)
    form = model.form
    if reasons == ["uneven"]:
        assert form["joined"] == "dh" and form["behind"] in ("gate", "norm")
        return
    expected = {"qk": True, "vo": True, "heads": seed % 2 == 1 and form["norm"] != "layer norm"}  # one scale for all heads
    if form["values"] == "by head" and expected["vo"]:
        assert any("hang together" in reason for reason in reasons) or not cut
        expected["vo"] = False
    assert {name: name in cut for name in expected} == expected, reasons


@pytest.mark.parametrize("file", [False, True], ids=["module", "file"])
@pytest.mark.parametrize("seed", SEEDS)
def test_ffns(seed: int, file: bool, tmp_path: Path) -> None:
    model = Ffn(seed)
    cut, reasons = outcome(model, {"ffn": 0.5}, tmp_path, file)
    assert not silent(model, cut, reasons), reasons


@pytest.mark.parametrize("seed", [305, 308, 335])  # they hand the size of queries, all at once, to a reshape
def test_sizes_that_dynamo_leaves_open(seed: int) -> None:
    model, ratios = Attention(seed).eval(), {"attention": ATTENTION[0], "round_to": 1}
    torch._dynamo.reset()
    options = {"ratios": ratios, "recipe": "magnitude", "then": "eager"}
    with quiet(), torch.no_grad():
        made = toastc.prune(model, ratios, recipe="magnitude", example_inputs=(X,)).model(X)
        compiled = torch.compile(model, backend="toastc", dynamic=True, options=options)(X)
    assert torch.allclose(made, compiled, atol=1e-5)


@pytest.mark.parametrize("file", [False, True], ids=["module", "file"])
@pytest.mark.parametrize("seed", [308, 406])  # bmm: images and heads on one axis, where queries and keys are measured
def test_the_default_recipe(seed: int, file: bool, tmp_path: Path) -> None:
    data, ratios = torch.randn(64, *X.shape[1:]), {"attention": ATTENTION[seed % 2], "round_to": 1}
    model = Attention(seed).eval()
    with quiet():
        if file:
            torch.onnx.export(model, (X,), tmp_path / "m.onnx", dynamo=False, opset_version=17, input_names=["x"])
            made = toastc.prune(tmp_path / "m.onnx", ratios, data=data.numpy())
        else:
            made = toastc.prune(model, ratios, data=data, example_inputs=(X,))
    assert made.report.verified is not None and made.report.verified["ok"]
    assert not [note for note in made.report.notes if "could not be watched" in note]


def test_the_check_counts_what_it_drew(capsys: pytest.CaptureFixture[str]) -> None:
    row = run(2, seed=3, say=False)
    assert row["modules and files"] == 8 == row["proven"] + row["with a reason"] + row["uneven"] and not row["bad"]
    assert not capsys.readouterr().out
