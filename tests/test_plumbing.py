"""Every way of writing an attention or an FFN ends in something smaller that is proven, or in a reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from plumbing import Attention, Ffn, X
from torch import nn
from zoo_exports import quiet

import toastc
from toastc.errors import CannotShrink, NothingToPrune

SEEDS = [*range(20), 115, 175, 250]  # the last three: two rows of shuffles, norms between linears
ATTENTION = [{"qk": 0.5, "vo": 0.25}, {"qk": 0.5, "vo": 0.25, "heads": 0.5}]
BENT = ("relu", "gelu", "where", "with itself", "halves multiplied", "pairs multiplied", "beside its tanh", "between its tanh",
        "tokens first", "rows")  # an FFN has one of these  # fmt: skip
KNOWN = r"mixes its channels|one by one"
# Cut unevenly, channels are no tensor any more, or would change places: the one thing that is refused with the whole model.
UNEVEN = r"is no grid; what stands in it is cut unevenly|what is cut unevenly would change places"


def pruned(model: nn.Module, ratios: dict[str, Any], folder: Path, file: bool) -> tuple[list[str], list[str]]:
    """What was cut and proven, and the reasons for what was not."""
    try:
        with quiet():
            if file:
                source = folder / "m.onnx"
                torch.onnx.export(
                    model.eval(), (X,), source, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes={"x": {0: "b"}}
                )
                options = {"runtime": "ort-cpu", "output": folder / "o.onnx"}
                made = toastc.prune(source, ratios | {"round_to": 1}, recipe="magnitude", **options)
            else:
                made = toastc.prune(model.eval(), ratios | {"round_to": 1}, recipe="magnitude", example_inputs=(X,))
    except NothingToPrune as error:
        return [], [str(error)]
    except CannotShrink as error:
        return [], ["uneven"] if re.search(UNEVEN, str(error)) else [str(error)]
    report = made.report
    assert not made.plan or (report.verified is not None and report.verified["ok"])
    assert not [note for note in report.notes if note.startswith("not fused")]
    return [name.rpartition(".")[2] for name in made.plan.choices], [reject.reason for reject in report.rejects]


@pytest.mark.parametrize("file", [False, True], ids=["module", "file"])
@pytest.mark.parametrize("seed", SEEDS)
def test_attentions(seed: int, file: bool, tmp_path: Path) -> None:
    model = Attention(seed)
    cut, reasons = pruned(model, {"attention": ATTENTION[seed % 2]}, tmp_path, file)
    form = model.form
    if reasons == ["uneven"]:
        assert (form["joined"], form["behind"]) == ("dh", "gate")
        return
    expected = {"qk": form["norm"] not in ("l2", "layer norm"), "vo": form["behind"] != "norm"}
    expected["heads"] = seed % 2 == 1 and all(expected.values())
    if form["values"] == "by head" and expected["vo"]:
        assert any("hang together" in reason for reason in reasons) or not cut
        expected["vo"] = False
    assert {name: name in cut for name in expected} == expected, reasons


@pytest.mark.parametrize("file", [False, True], ids=["module", "file"])
@pytest.mark.parametrize("seed", SEEDS)
def test_ffns(seed: int, file: bool, tmp_path: Path) -> None:
    model = Ffn(seed)
    cut, reasons = pruned(model, {"ffn": 0.5}, tmp_path, file)
    plain = not any(name in BENT for name, _, _ in model.steps)
    assert cut == ["hidden"] or plain or reasons == ["uneven"] or re.search(KNOWN, " ".join(reasons)), reasons


@pytest.mark.parametrize("seed", [302, 308, 335])  # they hand the size of queries, all at once, to a reshape
def test_sizes_that_dynamo_leaves_open(seed: int) -> None:
    model, ratios = Attention(seed).eval(), {"attention": ATTENTION[0], "round_to": 1}
    torch._dynamo.reset()
    options = {"ratios": ratios, "recipe": "magnitude", "then": "eager"}
    with quiet(), torch.no_grad():
        made = toastc.prune(model, ratios, recipe="magnitude", example_inputs=(X,)).model(X)
        compiled = torch.compile(model, backend="toastc", dynamic=True, options=options)(X)
    assert torch.allclose(made, compiled, atol=1e-5)


@pytest.mark.parametrize("file", [False, True], ids=["module", "file"])
@pytest.mark.parametrize("seed", [302, 406])  # bmm: images and heads on one axis, where queries and keys are measured
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
