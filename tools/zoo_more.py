"""The zoo's families that are built otherwise than a plain ViT or Swin: attention over other axes, batch norms, two streams.

As in `zoo_models.py`. The tests take them through torch.export alone; `tools/zoo.py` takes them everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import transformers as hf
from timm.models.cait import Cait
from timm.models.crossvit import CrossVit
from timm.models.hiera import Hiera
from timm.models.levit import Levit
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.twins import Twins
from torch import nn
from zoo_family import Family, Positional, images


# fmt: off
def timms(name: str, arch: str, make: Callable[..., nn.Module], small: tuple[int, int], full: tuple[int, int], size: int = 224,
          no: Mapping[str, str] | None = None, **options: object) -> Family:
    """timm's `arch`; the small one is of the same class. `small`, `full`: attentions and FFNs."""
    return Family(name, lambda whole: timm.create_model(arch) if whole else make(num_classes=10, **options),
                  partial(images, size=size), (small, full), no or {})


def hugging(name: str, arch: str, task: str, output: str, small: Mapping[str, Any], sites: tuple[tuple[int, int], ...]) -> Family:
    def make(full: bool) -> nn.Module:
        config = getattr(hf, arch + "Config")(**({} if full else small))
        return Positional(getattr(hf, arch + task)(config), "pixel_values", output)
    return Family(name, make, images, sites)


CVT = {"embed_dim": [16, 32, 48], "depth": [1, 2, 3], "num_heads": [1, 2, 3], "num_labels": 10}
EYE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}

MORE = [
    timms("levit", "levit_128s", Levit, (5, 8), (11, 14), img_size=32, embed_dim=(32, 48, 64), key_dim=8, depth=(1, 1, 1),
          num_heads=(2, 3, 4)),
    timms("cait", "cait_xxs24_224", Cait, (4, 4), (26, 26), img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3),
    timms("sam_vit", "samvit_base_patch16", partial(timm.create_model, "samvit_base_patch16"), (2, 2), (12, 12), 1024,
          img_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=3, window_size=4, global_attn_indexes=(1,), neck_chans=16),
    timms("hiera", "hiera_tiny_224", Hiera, (4, 4), (12, 12), img_size=(32, 32), embed_dim=32, stages=(1, 1, 1, 1),
          mask_unit_size=(4, 4), q_pool=2),
    timms("twins_svt", "twins_svt_small", Twins, (6, 6), (18, 18), img_size=32, embed_dims=(16, 32, 48, 64), wss=(4, 4, 2, 1),
          num_heads=(1, 2, 3, 4), depths=(2, 2, 1, 1), sr_ratios=(4, 2, 1, 1), mlp_ratios=(4, 4, 4, 4)),
    timms("pvt_v2", "pvt_v2_b0", PyramidVisionTransformerV2, (4, 4), (8, 8), depths=(1, 1, 1, 1),
          embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), sr_ratios=(4, 2, 1, 1)),
    timms("crossvit", "crossvit_tiny_240", CrossVit, (5, 3), (21, 15), 240, img_size=32, img_scale=(1.0, 1.0), patch_size=(8, 16),
          embed_dim=(32, 48), depth=((1, 2, 1),), num_heads=(2, 3), mlp_ratio=(2.0, 2.0, 1.0)),
    hugging("hf_cvt", "Cvt", "ForImageClassification", "logits", CVT, ((6, 6), (13, 13))),
    hugging("hf_dinov2_registers", "Dinov2WithRegisters", "Model", "last_hidden_state", EYE, ((2, 2), (12, 12))),
]
