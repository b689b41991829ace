"""What a family of the zoo is: how its model is made, filled with random weights, and fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    name: str
    make: Callable[[bool], nn.Module]  # full -> model
    inputs: Callable[[bool, int], dict[str, Tensor]]  # (full, batch) -> name -> tensor
    sites: tuple[tuple[int, int], ...] = ((2, 2), (12, 12))
    unprunable: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[int, str] = field(default_factory=lambda: {0: "batch"})  # dynamic, in every input that has them

    def small(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return randomize(self.make(False))

    def full(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return randomize(self.make(True))


@torch.no_grad()
def randomize(model: nn.Module) -> nn.Module:
    """Fill all parameters in place: matrices keep variance, scales are near one, everything else is well off zero."""
    for owner in model.modules():
        for name, p in owner.named_parameters(recurse=False):
            if name in ("logit_scale", "temperature"):
                p.add_(torch.empty_like(p).uniform_(0.1, 0.4))
            elif "gamma" in name or name.startswith("lambda"):  # LayerScale; then norms
                p.uniform_(0.5, 1.0)
            elif name == "weight" and p.ndim == 1:
                p.uniform_(0.9, 1.1)
            elif name.endswith("weight") and not isinstance(owner, nn.Embedding):
                p.normal_(0.0, p[0].numel() ** -0.5)
            else:  # biases; then tokens, embeddings and position tables
                p.normal_(0.0, 0.05 if name.endswith("bias") and p.ndim == 1 else 0.3)
        if isinstance(owner, nn.BatchNorm2d):
            assert owner.running_mean is not None and owner.running_var is not None
            owner.running_mean.normal_(0.0, 0.1)
            owner.running_var.uniform_(0.8, 1.2)
    return model.eval()


class Positional(nn.Module):
    """A model behind positional tensors: `keys` are its keywords, `outputs` the fields it returns (none: all of it)."""

    def __init__(self, inner: nn.Module, keys: str, outputs: str = "", **fixed: object) -> None:
        super().__init__()
        self.inner, self.keys, self.outputs, self.fixed = inner, keys.split(), outputs.split(), fixed

    def forward(self, first: Tensor, second: Tensor | None = None, third: Tensor | None = None) -> object:
        out = self.inner(**dict(zip(self.keys, (first, second, third), strict=False)), **self.fixed)
        found = tuple(getattr(out, name) for name in self.outputs) or (out,)
        return found if len(found) > 1 else found[0]


def images(full: bool, batch: int, size: int = 224, small: int = 32, noise: bool = False) -> dict[str, Tensor]:
    found = {"noise": torch.rand(batch, 196 if full else 16)} if noise else {}
    return {"pixels": torch.randn(batch, 3, *[size if full else small] * 2), **found}
