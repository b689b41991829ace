"""The calibrated recipe on models of every kind: rotary, shared keys, fused nodes, windows, learnt queries, token ids."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("timm")
pytest.importorskip("transformers")

from zoo_exports import make_variant, quiet
from zoo_models import FAMILIES

import toastc
from toastc.graphs.onnx import load_model, sample_inputs, sizes_for

CASES = [
    ("deit_tiny", "dynamo20-dyn"),
    ("deit_tiny", "dynamo24"),
    ("swin_tiny", "ts17-dyn"),
    ("eva02_tiny", "dynamo20-dyn"),
    ("toy_gqa", "dynamo20-dyn"),
    ("toy_mqa", "ts17"),
    ("siglip_base", "dynamo18"),
    ("vit_22b_fused", "ort18-dyn"),
    ("hf_bert", "ort18-dyn"),
    ("torch_encoder", "dynamo20"),
]


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_calibrated_and_proven(tmp_path: Path, name: str, variant: str) -> None:
    family = FAMILIES[name]
    with quiet():
        make_variant(family, family.small(), variant, tmp_path)
    path = tmp_path / f"{name}.{variant}.onnx"
    model = load_model(path)
    feeds = [sample_inputs(model, sizes_for(model), seed) for seed in range(4)]
    result = toastc.prune(path, {"attention": 0.5, "ffn": 0.5, "round_to": 4}, data=feeds)
    assert result.report.verified is not None
    assert result.report.verified["ok"]
    assert len(result.plan.choices) > 2
    smaller = toastc.prune(path, target="macs=0.85", data=feeds, moments=result.moments).report
    assert smaller.after.macs <= 0.85 * smaller.before.macs
