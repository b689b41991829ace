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


class KeysFirst(nn.Module):
    """The same products with the keys on the left; the second is over keys of one head."""

    def __init__(self, first: bool = True, one: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.one, wide = first, one, WIDTH if one else DIM
        self.q, self.k, self.v, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, wide), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        with torch.no_grad():  # what all queries share is seen in the logits, what all keys share is not
            self.q.bias.view(HEADS, WIDTH)[:, : WIDTH // 4] += 3

    def forward(self, x: Tensor) -> Tensor:
        q, v = (t.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for t in (self.q(x), self.v(x)))
        k = self.k(x) if self.one else self.k(x).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
        keys = "bjd" if self.one else "bhjd"
        scores = torch.einsum(f"{keys},bhid->bhij", k, q) if self.first else torch.einsum(f"bhid,{keys}->bhij", q, k)
        mixed = (scores * WIDTH**-0.5).softmax(-1) @ v
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Pooled(nn.Module):
    """One query an image, at the right or at the left of its keys."""

    def __init__(self, left: bool) -> None:
        super().__init__()
        self.left = left
        self.q, self.k, self.v, self.out = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x[:, 0]), self.k(x)
        scores = torch.einsum("bd,bnd->bn", q, k) if self.left else torch.einsum("bnd,bd->bn", k, q)
        return x + self.out(torch.einsum("bn,bnd->bd", (scores * DIM**-0.5).softmax(-1), self.v(x)))[:, None]


def pruned_by_half(model: nn.Module, data: Tensor, recipe: str = "default") -> tuple[float, Any]:
    """Half of the channels of queries and keys are left: the relative error of the outputs, and which they are."""
    asked: dict[str, Any] = {"ratios": {"attention": {"qk": 0.5, "vo": 0}, "round_to": 1}, "recipe": recipe}
    with quiet(), torch.no_grad():
        made = toastc.prune(model.eval(), example_inputs=(data[:2],), data=data.numpy(), **asked)
        (choice,) = made.plan.choices.values()
        return float((made.model(data) - model(data)).norm() / (model(data) - data).norm()), choice


@pytest.mark.parametrize("one", [False, True])
def test_keys_are_those_that_the_softmax_weighs(one: bool) -> None:
    """Wherever they stand: their mean is nothing to it, that of the queries is."""
    data = torch.randn(64, TOKENS, DIM, generator=torch.Generator().manual_seed(1))
    first, second = (pruned_by_half(KeysFirst(side, one), data)[0] for side in (True, False))
    assert first == pytest.approx(second, rel=0.1) and second < 0.2


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("recipe", ["default", "corp", "vbp", "svd"])
def test_one_query_an_image(left: bool, recipe: str) -> None:
    torch.manual_seed(0)
    assert pruned_by_half(Pooled(left), torch.randn(32, TOKENS, DIM), recipe)[0] < 1


class Positions(nn.Module):
    """The first half of the channels meet positions, the other half the keys."""

    def __init__(self, each: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.each, self.q, self.k, self.v, self.out = each, *(nn.Linear(DIM, DIM) for _ in range(4))
        self.table = nn.Parameter(3 * torch.randn(*([HEADS] if each else []), TOKENS, TOKENS, WIDTH))
        with torch.no_grad():
            self.table[..., WIDTH // 2 :] *= 0.05
            for tensor in (self.k.weight.view(HEADS, WIDTH, DIM), self.k.bias.view(HEADS, WIDTH)):
                tensor[:, : WIDTH // 2] *= 0.05

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) + torch.einsum(f"bhid,{'h' if self.each else ''}ijd->bhij", q, self.table)
        return x + self.out(((scores * WIDTH**-0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("each", [False, True], ids=["one table", "a table for each head"])
@pytest.mark.parametrize("recipe", ["default", "corp", "vbp"])
def test_positions_that_queries_meet_count(each: bool, recipe: str) -> None:
    data = torch.randn(64, TOKENS, DIM, generator=torch.Generator().manual_seed(1))
    error, choice = pruned_by_half(Positions(each), data, recipe)
    assert error < 0.2 and set(choice.index.ravel().tolist()) == set(range(WIDTH // 2))


class Adapter(nn.Module):
    """Two attentions of the same queries, whose outputs are summed in front of one linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.kv = nn.ModuleList(nn.Linear(DIM, 2 * DIM) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        def heads(t: Tensor) -> Tensor:
            return t.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)

        q, pairs = heads(self.q(x)), [tuple(map(heads, kv(x).chunk(2, -1))) for kv in self.kv]
        mixed = [(q @ k.transpose(-1, -2) * WIDTH**-0.5).softmax(-1) @ v for k, v in pairs]
        return x + self.out((mixed[0] + mixed[1]).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("recipe", ["default", "corp", "vbp", "magnitude"])
def test_what_two_attentions_share_is_cut_once(recipe: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal((32, TOKENS, DIM)).astype(np.float32)
    asked: dict[str, Any] = {"ratios": {"attention": {"qk": 0.5, "vo": 0.25, "heads": 0.5}, "round_to": 1}, "recipe": recipe}
    asked |= {} if recipe == "magnitude" else {"data": data}
    made = toastc.prune(exported(Adapter(), tmp_path, False), output=tmp_path / "o.onnx", **asked)
    assert made.report.verified is not None and made.report.verified["ok"]
    assert sorted(name.rpartition(".")[2] for name in made.plan.choices) == ["qk", "vo"]
    assert made.report.after.macs == api.inspect(tmp_path / "o.onnx")["macs"], "each is counted once"
