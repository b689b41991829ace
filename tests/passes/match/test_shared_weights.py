"""Weights that several blocks use: one choice, by what all uses show together, and still one tensor afterwards."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from zoo_exports import quiet

import toastc
from toastc import api

DIM = 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.after, self.up, self.down = nn.LayerNorm(DIM), nn.Linear(DIM, 64), nn.Linear(64, DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).reshape(x.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).reshape(x.shape))
        out: Tensor = x + self.down(nn.functional.gelu(self.up(self.after(x))))
        return out


class Universal(nn.Module):
    """One block three times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.block, self.head = nn.Linear(8, DIM), Block(), nn.Linear(DIM, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(3):
            x = self.block(x)
        out: Tensor = self.head(x.mean(1))
        return out


X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1))
DATA = torch.randn(64, 6, 8, generator=torch.Generator().manual_seed(2)).numpy()
RATIOS = {"attention": {"qk": 0.5, "vo": 0.5}, "ffn": 0.5, "round_to": 1}


@pytest.mark.parametrize("recipe", ["magnitude", "default"])
def test_a_module(recipe: str) -> None:
    model = Universal().eval()
    with quiet():
        result = toastc.prune(model, RATIOS, recipe=recipe, example_inputs=(X,), data=DATA)
    report = result.report
    assert report.verified is not None and report.verified["ok"]
    assert [s.kind for s in report.sites] == ["attention", "ffn"]
    per_block = 6 * (DIM * 3 * DIM + DIM * DIM + 2 * DIM * 64) + 2 * 36 * DIM
    assert report.before.macs - report.after.macs == 3 * per_block // 2
    assert report.before.params - report.after.params == (3 * DIM * DIM + 3 * DIM + DIM * DIM + 2 * DIM * 64 + 64) // 2


@pytest.mark.parametrize("recipe", ["magnitude", "default"])
def test_a_file(recipe: str, tmp_path: Path) -> None:
    with quiet():
        torch.onnx.export(Universal().eval(), (X,), tmp_path / "m.onnx", dynamo=True, opset_version=20, input_names=["x"])
    report = toastc.prune(tmp_path / "m.onnx", RATIOS, recipe=recipe, output=tmp_path / "s.onnx", data=DATA[:4]).report
    assert report.verified is not None and report.verified["ok"]
    weights = [t for t in onnx.load(tmp_path / "s.onnx").graph.initializer if sorted(t.dims) == [DIM, 32]]
    assert len(weights) == 2, "up and down, once each"


def test_all_uses_count() -> None:
    """What is fitted to all of them together is nearer than what the weights alone tell."""
    model = Universal().eval()
    with quiet():
        blunt, fitted = (
            toastc.prune(model, RATIOS, recipe=recipe, example_inputs=(X,), data=DATA).report.measured["error"]
            for recipe in ("magnitude", "default")
        )
    assert fitted < 0.85 * blunt


def test_it_is_one_site() -> None:
    with quiet():
        found = api.inspect(Universal().eval(), example_inputs=(X,))
    assert len(found["sites"]) == 2
    assert [r["reason"] for r in found["rejects"]] == ["another attention has its queries or keys"], "whole heads stay"
