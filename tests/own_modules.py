"""Modules of users that are made smaller, as the tests of torch need them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers
from conftest import RATIOS
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import toastc

torch.set_num_threads(1)
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
IMAGES = {"image_size": 32, "patch_size": 8}


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=7)


def swin() -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (1, 2)}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=7, **sizes)


def dinov3() -> nn.Module:
    return timm.create_model("vit_small_patch16_dinov3", img_size=32, patch_size=8, depth=2)


def hf_vit() -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, **IMAGES))


def clip() -> nn.Module:
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SMALL, **IMAGES))


def torchvision() -> nn.Module:
    model = VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=7)
    nn.init.normal_(model.heads.head.weight)  # which torchvision leaves at zero
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm_vit": vit, "timm_swin": swin, "timm_dinov3": dinov3, "hf_vit": hf_vit, "hf_clip": clip, "torchvision_vit": torchvision,
}  # fmt: skip
WRITTEN = {  # where attention is, and of which linears it is made
    "timm_vit": ("blocks.{}.attn", ("qkv", "proj"), "blocks.{}.mlp.fc1"),
    "timm_swin": ("layers.{}.blocks.0.attn", ("qkv", "proj"), "layers.{}.blocks.0.mlp.fc1"),
    "timm_dinov3": ("blocks.{}.attn", ("qkv", "proj"), "blocks.{}.mlp.fc1"),
    "hf_vit": ("vit.layers.{}.attention", ("q_proj", "o_proj"), "vit.layers.{}.mlp.fc1"),
    "hf_clip": ("encoder.layers.{}.self_attn", ("q_proj", "out_proj"), "encoder.layers.{}.mlp.fc1"),
    "torchvision_vit": ("encoder.layers.encoder_layer_{}.self_attention", ("out_proj",), "encoder.layers.encoder_layer_{}.mlp.0"),
}
EVERY = pytest.mark.parametrize("name", MODELS)


def dense(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def images(count: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def pruned(name: str, ratios: Any = RATIOS, **more: Any) -> toastc.Result:
    return toastc.prune(dense(name), ratios, **{"recipe": "magnitude", "example_inputs": (images(),)} | more)


def numbers(out: Any) -> Tensor:
    return next(t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor))


def off(a: Any, b: Any) -> float:
    a, b = numbers(a).float(), numbers(b).float()
    return float((a - b).norm() / a.norm())
