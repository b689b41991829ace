"""Small models of the zoo's families, and what comes out of them as one row of numbers."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from zoo_exports import quiet
from zoo_models import FAMILIES


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
