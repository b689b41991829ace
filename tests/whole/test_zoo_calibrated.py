"""The calibrated recipe on models of every kind: rotary, shared keys, fused nodes, windows, learnt queries, token ids."""

from __future__ import annotations

import pytest
from conftest import ZooFile

import toastc
from toastc.graphs.onnx import load_model, sample_inputs, sizes_for

CASES = [
    ("deit_tiny", "dynamo20-dyn"),
    ("deit_tiny", "dynamo24"),
    ("swin_tiny", "ts17-dyn"),
    ("eva02_tiny", "dynamo20-dyn"),
    ("toy_gqa", "ts17-dyn"),
    ("toy_mqa", "ts17-dyn"),
    ("siglip_base", "ts17-dyn"),
    ("vit_22b_fused", "ts17-dyn"),
    ("hf_bert", "ort-dyn"),
    ("torch_encoder", "dynamo24"),
]


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_calibrated_and_proven(zoo_file: ZooFile, name: str, variant: str) -> None:
    path = zoo_file(name, variant)
    model = load_model(path)
    feeds = [sample_inputs(model, sizes_for(model), seed) for seed in range(4)]
    result = toastc.prune(path, {"attention": 0.5, "ffn": 0.5, "round_to": 4}, data=feeds)
    assert result.report.verified is not None
    assert result.report.verified["ok"]
    assert len(result.plan.choices) > 2
    smaller = toastc.prune(path, target="macs=0.85", data=feeds, moments=result.moments).report
    assert smaller.after.macs <= 0.85 * smaller.before.macs
