"""Products in which only one side has heads: keys of one head for all queries, a table of positions for all heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import check_module, check_onnx
from torch import Tensor, nn
from zoo_exports import quiet

import toastc
from toastc import api

HEADS, WIDTH, SIDE = 2, 16, 3
DIM, TOKENS = HEADS * WIDTH, SIDE * SIDE
X = torch.randn(2, TOKENS, DIM, generator=torch.Generator().manual_seed(0))
torch.set_num_threads(1)


class OneKey(nn.Module):
    """Many queries, one key and one value a token, as lucidrains writes it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.kv, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * WIDTH), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
        k, v = self.kv(x).chunk(2, dim=-1)
        scores = torch.einsum("bhid,bjd->bhij", q, k) * WIDTH**-0.5
        mixed = torch.einsum("bhij,bjd->bhid", scores.softmax(-1), v)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Decomposed(nn.Module):
    """Positions relative in height and in width, met by the queries (SAM, ViTDet, MViT)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.high, self.wide = (nn.Parameter(torch.randn(2 * SIDE - 1, WIDTH)) for _ in range(2))
        self.register_buffer("apart", torch.arange(SIDE)[:, None] - torch.arange(SIDE)[None] + SIDE - 1)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        parts = self.qkv(x).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.reshape(3, b * HEADS, TOKENS, WIDTH).unbind(0)
        scores = (q * WIDTH**-0.5) @ k.transpose(-2, -1)
        grid = q.reshape(-1, SIDE, SIDE, WIDTH)
        high = torch.einsum("bhwc,hkc->bhwk", grid, self.high[self.apart])
        wide = torch.einsum("bhwc,wkc->bhwk", grid, self.wide[self.apart])
        scores = scores.reshape(-1, SIDE, SIDE, SIDE, SIDE) + high[..., None] + wide[..., None, :]
        mixed = scores.reshape(-1, TOKENS, TOKENS).softmax(-1) @ v
        return x + self.out(mixed.reshape(b, HEADS, TOKENS, WIDTH).transpose(1, 2).flatten(2))


def exported(model: nn.Module, folder: Path, dynamo: bool) -> Path:
    path = folder / "m.onnx"
    with quiet():
        torch.onnx.export(model.eval(), (X,), path, dynamo=dynamo, opset_version=18, input_names=["x"], verbose=False)
    return path


@pytest.mark.parametrize("kind", [OneKey, Decomposed])
def test_they_are_found_whole(kind: type[nn.Module]) -> None:
    with quiet():
        (site,) = api.inspect(kind().eval(), example_inputs=(X,))["sites"]
    assert {c["name"]: c["prunable"] for c in site["couplings"]} == {"qk": True, "vo": True}
    assert (site["heads"], site["head_dim"], site["v_head_dim"]) == (HEADS, WIDTH, WIDTH)


@pytest.mark.parametrize("kind", [OneKey, Decomposed])
@pytest.mark.parametrize("seed", [0, 1])
def test_modules(kind: type[nn.Module], seed: int) -> None:
    with quiet():
        assert check_module(kind().eval(), (X,), seed=seed) <= 1e-4
        assert check_module(kind().eval(), (X,), seed=seed, basis=True) <= 1e-4


@pytest.mark.parametrize("kind", [OneKey, Decomposed])
@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "dynamo"])
def test_files(kind: type[nn.Module], dynamo: bool, tmp_path: Path) -> None:
    path = exported(kind(), tmp_path, dynamo)
    check_onnx(path, tmp_path, seed=1)
    check_onnx(path, tmp_path, seed=1, basis=True)


@pytest.mark.parametrize("kind", [OneKey, Decomposed])
@pytest.mark.parametrize("recipe", ["default", "svd", "corp"])
def test_recipes(kind: type[nn.Module], recipe: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal((32, TOKENS, DIM)).astype(np.float32)
    asked: dict[str, Any] = {"data": data, "recipe": recipe}
    asked |= {"target": "macs=0.7"} if recipe == "default" else {"ratios": {"attention": 0.5, "round_to": 1}}
    made = toastc.prune(exported(kind(), tmp_path, False), output=tmp_path / "o.onnx", **asked)
    assert made.report.verified is not None and made.report.verified["ok"]
    assert any(name.endswith(".qk") for name in made.plan.choices)
