"""Small models of the zoo's families, and what comes out of them as one row of numbers."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from zoo_exports import quiet
from zoo_models import FAMILIES

import toastc
from toastc.training.compactors import Compacted


def model_and_inputs(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]]:
    """A small model, what to export it with, and other inputs of another batch."""
    family = FAMILIES[name]
    with quiet():
        model = family.small(seed).eval()
    torch.manual_seed(1)
    return model, tuple(family.inputs(False, 2).values()), tuple(family.inputs(False, 5).values())


def vit_of_transformers(**more: Any) -> nn.Module:
    """For images of 32 x 32."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=32, patch_size=8, **sizes, **more)
    return transformers.ViTForImageClassification(config).eval()


def numbers(made: Any) -> Tensor:
    return torch.cat([t.detach().flatten().float() for t in torch.utils._pytree.tree_leaves(made) if isinstance(t, Tensor)])


class Masked(nn.Module):
    """Attention that returns its weights, under a mask: `baddbmm` in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        made: Tensor = self.attention(x, x, x, attn_mask=mask)[0]
        return made


def compacted(name: str = "deit_tiny", target: str = "macs=0.6", seed: int = 0, **options: Any) -> tuple[Compacted, Any, Any]:
    family = FAMILIES[name]
    with quiet():
        model = family.small(seed).eval()
        torch.manual_seed(1)
        args, others = (tuple(family.inputs(False, n).values()) for n in (2, 5))
        options = {"round_to": 4, "warmup": 2, "every": 2} | options
        return toastc.compact(model, target, example_inputs=args, **options), args, others
