"""FFNs over maps of four axes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS, HEADS, SIDE = 16, 2, 4


class Ffn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 32), nn.Linear(32, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(functional.gelu(self.fc1(self.norm(x))))


class Maps(nn.Module):
    """FFNs over [images, height, width, channels], or with the tokens of all images on one axis."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.flat = nn.Conv2d(3, CHANNELS, 4, 4), flat
        self.first, self.second = Ffn(), Ffn()

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).permute(0, 2, 3, 1)
        shape = x.shape
        x = self.second(self.first(x.reshape(-1, CHANNELS) if self.flat else x))
        return x.reshape(shape).mean((1, 2))
