"""One small ViT, with something unusual behind its first block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)

CHANNELS, HEADS, PATCHES = 16, 2, 16


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


Twist = Callable[["Vit", Tensor, Sequence[Tensor]], Any]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * 0.35).softmax(-1) @ v


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.q, self.k, self.v, self.proj = (nn.Linear(CHANNELS, CHANNELS) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(CHANNELS, 4 * CHANNELS), nn.Linear(4 * CHANNELS, CHANNELS)

    def attention(self, x: Tensor, values: Tensor, attend: Attend) -> Tensor:
        q, k, v = (
            linear(self.norm1(of)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear, of in ((self.q, x), (self.k, x), (self.v, values))
        )
        return x + self.proj(attend(q, k, v).transpose(1, 2).flatten(2))

    def alone(self, x: Tensor) -> Tensor:
        """The first token asks all."""
        first = x[:, :1]
        q, k, v = (
            linear(self.norm1(of)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear, of in ((self.q, first), (self.k, x), (self.v, x))
        )
        return first + self.proj(plain(q, k, v).transpose(1, 2).flatten(2))

    def ffn(self, x: Tensor) -> Tensor:
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))

    def forward(self, x: Tensor, values: Tensor | None = None, attend: Attend = plain) -> Tensor:
        return self.ffn(self.attention(x, x if values is None else values, attend))


class Vit(nn.Module):
    """Three blocks, and a twist that sees the streams before all of them; it may use two blocks of its own, 3 and 4."""

    def __init__(self, twist: Twist) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, CHANNELS, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 1, CHANNELS))
        self.places = nn.Parameter(torch.randn(1, PATCHES + 1, CHANNELS))
        self.blocks = nn.ModuleList(Block() for _ in range(5))
        self.over_tokens = nn.Linear(PATCHES + 1, PATCHES + 1)
        self.head = nn.Linear(CHANNELS, 5)
        self.twist = twist

    def forward(self, image: Tensor) -> Any:
        x = self.patches(image).flatten(2).transpose(1, 2)
        seen = [torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places]
        for block in self.blocks[:3]:
            seen.append(block(seen[-1]))
        made = self.twist(self, seen[-1], seen)
        return self.head(made[:, 0]) if isinstance(made, Tensor) and made.ndim == 3 else made


def attended(attend: Attend) -> Twist:
    return lambda vit, x, seen: vit.blocks[3](x, None, attend)


def with_mask(mask: Tensor) -> Attend:
    return lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
