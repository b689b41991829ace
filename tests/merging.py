"""A ViT written out by hand in which tokens are averaged one pair at a time: what token merging is held against."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
from torch import Tensor

torch.set_num_threads(1)

SIZE, PATCH, BLOCKS = (40, 72), 8, 4  # a grid of 5 x 9: odd both ways


HEIGHT, WIDTH = SIZE[0] // PATCH, SIZE[1] // PATCH


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    made = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIZE,
        patch_size=PATCH,
        depth=BLOCKS,
        embed_dim=48,
        num_heads=3,
        num_classes=7,
        reg_tokens=2,
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return made.eval()


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def spell(vit: Any, fused: bool) -> None:
    """Attention as one call, or written out."""
    for block in vit.blocks:
        block.attn.fused_attn = fused


class Dense(torch.nn.Module):
    """A head that wants the grid, an output that is the sequence."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.head = model, torch.nn.Conv2d(48, 2, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.model.forward_features(x)
        grid = y[:, self.model.num_prefix_tokens :].transpose(1, 2).reshape(-1, 48, HEIGHT, WIDTH)
        return self.head(grid), y


@pytest.fixture(scope="module", params=[(18, False), (18, True), (23, True)], ids=["products", "decomposed", "attention node"])
def file(request: Any, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    opset, fused = request.param
    path = tmp_path_factory.mktemp("tokens") / "dense.onnx"
    spell(model, fused)
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            model, (images(2),), path, dynamo=True, opset_version=opset, verbose=False, input_names=["image"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
        )  # fmt: skip
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert ("Attention" in kinds) == (opset == 23)
    return path
