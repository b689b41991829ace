"""What is not cut is never passed over in silence, where it counts: in each model every heavy linear or product is told of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from zoo_exports import quiet

from toastc import api


class Gated(nn.Module):
    """gMLP: a linear over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.over, self.down = nn.Linear(16, 32), nn.Linear(6, 6), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        u, v = nn.functional.gelu(self.up(x)).chunk(2, -1)
        out: Tensor = self.down(u * self.over(v.transpose(1, 2)).transpose(1, 2))
        return out


class Additive(nn.Module):
    """An attention without a softmax between its products, as in factorised ones."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (linear(x).unflatten(-1, (2, 8)).transpose(1, 2) for linear in (self.q, self.k, self.v))
        out: Tensor = self.proj((q @ (k.softmax(2).transpose(-2, -1) @ v)).transpose(1, 2).flatten(2))
        return out


class Bare(Additive):
    """No softmax at all."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (linear(x).unflatten(-1, (2, 8)).transpose(1, 2) for linear in (self.q, self.k, self.v))
        out: Tensor = self.proj((q @ k.transpose(-2, -1) @ v).transpose(1, 2).flatten(2)).mean(-1)
        return out


class Grouped(nn.Module):
    """A convolution in groups of four channels, in the midst of a stream that three take."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mixed, self.head = nn.Linear(16, 16), nn.Conv1d(16, 16, 3, padding=1, groups=4), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.mixed(x.transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.head(x.relu())
        return out


class Straight(nn.Module):
    """Nothing but a norm between two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.norm, self.two = nn.Linear(16, 16), nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.norm(self.one(self.stem(x))))
        return out


class Streaming(nn.Module):
    """Linears from the stream to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x).relu()
        x = x + self.one(x)
        x = x + self.two(x)
        return self.head(x), self.stem.weight.sum()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Gated(), {"over": "is applied along another axis of it", "up": "along another axis"}),
        (Additive(), {"matmul": "carry channels outwards", "proj": "is an output of the model"}),
        (Bare(), {"matmul": "no softmax stands between two products with it", "proj": "what it makes: no linear takes it"}),
        (Grouped(), {"mixed": "is not understood", "stem": "what it reads: no linear makes it"}),
        (Straight(), {"one": "no activation stands between it and the next linear"}),
        (Streaming(), {"one": "3 others take it, a residual stream", "head": "is an output of the model"}),
    ],
)
def test_heavy_ones_are_told_of(model: nn.Module, words: dict[str, str]) -> None:
    with quiet():
        found = api.inspect(model.eval(), example_inputs=(torch.randn(2, 6, 16),))
    assert all(whole["reason"] for whole in found["whole"]), found["whole"]
    for node, why in words.items():
        assert any(node in whole["node"] and why in whole["reason"] for whole in found["whole"]), found["whole"]


def test_shares_add_up() -> None:
    with quiet():
        found = api.inspect(Streaming().eval(), example_inputs=(torch.randn(2, 6, 16),))
    assert found["share"] + sum(whole["share"] for whole in found["whole"]) == pytest.approx(1, abs=1e-3)
