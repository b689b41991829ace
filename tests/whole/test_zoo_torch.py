"""Every family through torch.export, and its ONNX twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from conftest import RATIOS, ZooFile
from oracle import check_module, leaf
from zoo_exports import quiet
from zoo_hybrids import HYBRIDS
from zoo_models import DISTINCT, FAMILIES
from zoo_more import MORE

import toastc
from toastc import api
from toastc.graphs.fx.capture import exported as captured

torch.set_num_threads(1)
SCORED_OTHERWISE = {  # numbers that meet queries, which weigh in their scores
    "siglip_base": "its pooling query is a constant of Dynamo's",
    "swinv2_tiny": "its temperatures stand at the queries, where attention was fused",
}


@pytest.mark.parametrize("name", [*DISTINCT, *(row.name for row in (*MORE, *HYBRIDS))])
def test_family_shrinks_through_export_stays_itself_and_the_backend_gives_the_same(name: str) -> None:
    family = FAMILIES[name]
    torch._dynamo.reset()
    with quiet(), torch.no_grad():
        model, args = family.small().eval(), tuple(family.inputs(False, 2).values())
        program = captured(model, args)
        found = api.inspect(program)
        error = check_module(program, args, basis=True, seed=3)  # others made of them
        made = toastc.prune(program, RATIOS, recipe="magnitude")  # channels left out
        own = toastc.prune(model, RATIOS, recipe="magnitude", example_inputs=args)
        assert isinstance(own.model, type(model)) or name == "toy_tied", own.report.notes  # its parts are called twice
        assert own.report.verified["error"] <= 1e-4
        others = tuple(family.inputs(False, 2 if name == "torch_encoder_seq_first" else 5).values())  # its batch comes second
        assert (leaf(made.model(*others)) - leaf(own.model(*others))).abs().max() <= 1e-5
        if name in DISTINCT:  # of the others tools/zoo.py
            expected = leaf(made.model(*args))
            options = {"ratios": RATIOS, "recipe": "magnitude", "then": "eager"}
            got = leaf(torch.compile(model, backend=toastc.backend, options=options)(*args))
            same = (expected - got).abs().max() <= 1e-4 * expected.abs().max()
            assert same or name in SCORED_OTHERWISE
    assert all(whole["reason"] for whole in found["whole"]), found["whole"]
    assert error <= 1e-4 and made.report.verified["error"] <= 1e-4
    if not family.unprunable:
        kinds = [s["kind"] for s in found["sites"] if all(c["prunable"] for c in s["couplings"])]
        assert (kinds.count("attention"), kinds.count("ffn")) == family.sites[0], found["rejects"]


@pytest.mark.parametrize("name", ["deit_tiny", "swin_tiny", "hf_vit_sdpa", "dinov2", "toy_packed"])
def test_onnx_and_torch_give_the_same_plan_and_outputs(name: str, zoo_file: ZooFile, tmp_path: Path) -> None:
    family = FAMILIES[name]
    with quiet():
        model = family.small().eval()
    inputs = family.inputs(False, 2)
    small = toastc.prune(model, RATIOS, recipe="magnitude", example_inputs=tuple(inputs.values()))
    other = toastc.prune(zoo_file(name), RATIOS, recipe="magnitude", output=tmp_path / "small.onnx")
    mine, theirs = (dict(r.plan.choices) for r in (small, other))
    assert mine.keys() == theirs.keys()
    for key, choice in mine.items():
        assert np.array_equal(choice.index, theirs[key].index), key
    with torch.no_grad():
        expected = small.model(*inputs.values())
    expected = expected[0] if isinstance(expected, tuple) else expected
    got = ort.InferenceSession(tmp_path / "small.onnx").run(None, {k: v.numpy() for k, v in inputs.items()})[0]
    assert np.abs(expected.numpy() - got).max() <= 1e-4 * np.abs(got).max()


def test_a_weight_used_by_two_blocks_is_cut_once() -> None:
    family = FAMILIES["toy_tied"]
    with quiet():
        found = api.inspect(family.small().eval(), example_inputs=tuple(family.inputs(False, 2).values()))
    assert [s["kind"] for s in found["sites"]] == ["attention", "ffn"]
