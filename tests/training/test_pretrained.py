"""Pruned modules as folders: saved and loaded without the dense weights, without pickle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from small import vit_of_transformers
from torch import nn
from zoo_exports import quiet

import toastc
from toastc.system.errors import ToastcError

RATIOS = {"attention": 0.5, "ffn": 0.5, "round_to": 4}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def of_timm() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10).eval()


def of_transformers() -> nn.Module:
    model = vit_of_transformers()
    model.image_size = 32
    return model


def logits(made: object) -> torch.Tensor:
    return made if isinstance(made, torch.Tensor) else made.logits  # type: ignore[attr-defined]


@pytest.mark.parametrize(("build", "options"), [(of_timm, {"depth": 2}), (of_transformers, {})])
def test_a_folder_gives_back_the_module(build: object, options: dict[str, int], tmp_path: Path) -> None:
    with quiet():
        dense = build()  # type: ignore[operator]
        small = toastc.prune(dense, RATIOS, recipe="magnitude").model
        toastc.save_pretrained(small, tmp_path / "vit", dense, **options)
        again = toastc.from_pretrained(tmp_path / "vit")
    assert sorted(p.name for p in (tmp_path / "vit").iterdir()) == ["config.json", "model.safetensors"]
    with torch.no_grad():
        torch.testing.assert_close(logits(again(IMAGES)), logits(small(IMAGES)))
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in dense.parameters())


def test_options_that_can_not_be_read_off_must_be_given(tmp_path: Path) -> None:
    with quiet():
        dense = of_timm()
        small = toastc.prune(dense, RATIOS, recipe="magnitude", verify=False).model
    with pytest.raises(ToastcError, match="give its options"):
        toastc.save_pretrained(small, tmp_path / "vit", dense)
    assert not (tmp_path / "vit").exists()


def test_other_peoples_modules_have_another_way(tmp_path: Path) -> None:
    with pytest.raises(ToastcError, match=r"toastc\.finetune\.save"):
        toastc.save_pretrained(nn.Linear(2, 2), tmp_path / "vit", nn.Linear(2, 2))


@pytest.mark.parametrize(
    "config",
    [
        "no", "[]", "{}", '{"format": 99, "toastc": "9"}',
        '{"format": 1, "build": {"library": "os", "name": "system", "options": {}}, "inputs": []}',
        '{"format": 1, "build": {"library": "transformers", "name": "pipeline", "options": {}}, "inputs": []}',
        '{"format": 1, "build": {"library": "timm", "name": "no_such_model", "options": {}}, "inputs": []}',
    ],
)  # fmt: skip
def test_a_strange_configuration_is_refused(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ToastcError, match=r"config\.json"):
        toastc.from_pretrained(tmp_path)
    with pytest.raises(ToastcError, match="no such file"):
        toastc.from_pretrained(tmp_path / "none")


def test_the_configuration_is_plain(tmp_path: Path) -> None:
    with quiet():
        dense = of_timm()
        small = toastc.prune(dense, RATIOS, recipe="magnitude", verify=False).model
        toastc.save_pretrained(small, tmp_path, dense, depth=2)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["build"] == {
        "library": "timm", "name": "vit_tiny_patch16_224", "options": {"num_classes": 10, "img_size": [32, 32], "depth": 2},
    }  # fmt: skip
