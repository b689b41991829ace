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

TYPICAL = "ts17-dyn"  # the quickest; what torch.export makes of all families is in test_zoo_torch.py
OTHERS = {  # what other exporters make of the plainest, and where they differ most; all of them of all families: tools/zoo.py
    "deit_tiny": ("ts17", "dynamo18", "dynamo20-dyn", "dynamo23-dyn", "dynamo24", "onnxslim-dyn", "onnxsim", "ort-dyn", "ort"),
    "swin_tiny": ("dynamo20-dyn",),
    "hf_bert": ("ort-dyn",),
    "torch_encoder": ("dynamo24",),
    "torch_decoder": ("dynamo20-dyn",),
    "toy_packed": ("dynamo20-dyn",),
    "eva02_tiny": ("dynamo20-dyn",),
}


def cases() -> list[tuple[str, str]]:
    return [(name, TYPICAL) for name in DISTINCT] + [(name, variant) for name, variants in OTHERS.items() for variant in variants]


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
    for basis in (False, True) if variant == TYPICAL else (True,):  # channels left out, or others made of them
        check_onnx(dense, tmp_path, basis=basis, seed=1)
