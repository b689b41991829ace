"""LeViT: every linear is followed by a batch norm of rows, whose four vectors are cut with its channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from oracle import check_module, check_onnx
from torch import nn
from zoo_exports import export_onnx, quiet

from toastc import api


@pytest.fixture(scope="module")
def levit() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embed_dim": (32, 48), "depth": (2, 2), "num_heads": (2, 3), "attn_ratio": 2, "mlp_ratio": 2}
    model = timm.create_model("levit_128s", img_size=64, key_dim=8, num_classes=5, **sizes)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
    with torch.no_grad(), quiet():
        for _ in range(20):  # statistics as training leaves them
            model.train()(torch.randn(8, 3, 64, 64))
    return model.eval()


def test_modules(levit: nn.Module) -> None:
    x = torch.randn(2, 3, 64, 64)
    with quiet():
        found = api.inspect(levit, example_inputs=(x,))
        assert {(s["kind"], c["name"], c["prunable"]) for s in found["sites"] for c in s["couplings"]} >= {
            ("attention", "qk", True), ("attention", "vo", True), ("ffn", "hidden", True),
        }  # fmt: skip
        assert not found["rejects"]
        assert check_module(levit, (x,)) <= 1e-4


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_files(levit: nn.Module, tmp_path: Path, exporter: str) -> None:
    path = tmp_path / "dense.onnx"
    with quiet():
        export_onnx(
            levit, {"image": torch.randn(2, 3, 64, 64)}, path, exporter=exporter, opset=17 if exporter == "torchscript" else 18
        )
    check_onnx(path, tmp_path)
