"""Every family, small, through real exporters, shrunk at random and proven."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ZooFile
from oracle import check_onnx
from zoo_models import DISTINCT, FAMILIES

from toastc import api

torch.set_num_threads(1)

VARIANTS = ("dynamo20-dyn", "ts17")
DEEP = ("deit_tiny", "swin_tiny")
DEEP_VARIANTS = ("dynamo18", "dynamo23-dyn", "dynamo24", "ts17-dyn", "onnxslim-dyn", "onnxsim", "ort-dyn", "ort")
OTHERS = ("hf_bert", "torch_encoder", "eva02_tiny")
OTHERS_VARIANTS = ("dynamo24", "ts17-dyn", "ort-dyn")  # all of them: tools/zoo.py


def cases() -> list[tuple[str, str]]:
    pairs = [(name, variant) for name in DISTINCT for variant in VARIANTS]
    pairs += [(name, variant) for name in DEEP for variant in DEEP_VARIANTS]
    pairs += [(name, variant) for name in OTHERS for variant in OTHERS_VARIANTS]
    return pairs


def counted(found: dict) -> tuple[int, int]:
    """How many attentions and how many FFNs were found."""
    kinds = [s["kind"] for s in found["sites"]]
    return kinds.count("attention"), kinds.count("ffn")


@pytest.mark.parametrize(("name", "variant"), cases(), ids=lambda x: x)
def test_family_shrinks_and_is_proven(name: str, variant: str, zoo_file: ZooFile, tmp_path: Path) -> None:
    family, dense = FAMILIES[name], zoo_file(name, variant)
    found = api.inspect(dense)
    attention, ffn = counted(found)
    unprunable = {c["name"] for s in found["sites"] for c in s["couplings"] if not c["prunable"]}
    assert unprunable <= set(family.unprunable), found["rejects"]
    if not family.unprunable:
        assert (attention, ffn) == family.sites[0], found["rejects"]
        assert [r for r in found["rejects"] if not r["node"].endswith(".heads")] == []
    if not found["sites"]:
        assert found["rejects"], "nothing found and nothing said"
        return
    check_onnx(dense, tmp_path, seed=1)
    check_onnx(dense, tmp_path, basis=True, seed=2)
