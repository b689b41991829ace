"""The zoo's hybrids: FFNs and attentions written as convolutions, beside or instead of linears.

As in `zoo_models.py`. The tests take them through torch.export alone; `tools/zoo.py` takes them everywhere.
"""

from __future__ import annotations

from functools import partial

import timm
from timm.models.convnext import ConvNeXt
from timm.models.efficientformer_v2 import EfficientFormerV2
from timm.models.metaformer import MetaFormer
from timm.models.tiny_vit import TinyVit
from zoo_more import timms

FOUR = (16, 24, 32, 48)  # widths of four stages

# fmt: off
HYBRIDS = [
    timms("convnext", "convnext_atto", ConvNeXt, (0, 4), (0, 12), depths=(1, 1, 1, 1), dims=FOUR),
    timms("convnext_conv", "convnext_atto", partial(ConvNeXt, conv_mlp=True), (0, 4), (0, 12), depths=(1, 1, 1, 1), dims=FOUR),
    timms("poolformer", "poolformer_s12", MetaFormer, (0, 5), (0, 12), depths=(1, 1, 1, 1), dims=FOUR, downsample_norm=None),
    timms("efficientformerv2", "efficientformerv2_s0", EfficientFormerV2, (3, 7), (5, 15), depths=(1, 1, 2, 2), embed_dims=FOUR,
          img_size=32, num_vit=1, mlp_ratios=(4, 4, (4, 3), (4, 3))),
    timms("tiny_vit", "tiny_vit_5m_224", TinyVit, (3, 8), (10, 16), embed_dims=(16, 32, 48, 64), depths=(1, 1, 1, 1),
          num_heads=(1, 2, 3, 4), window_sizes=(2, 2, 2, 2)),
    timms("mobilevit", "mobilevit_xxs", partial(timm.create_model, "mobilevit_xxs"), (9, 23), (9, 23), 256),
]
