"""The zoo's detectors and segmenters: a backbone and what stands behind it, as one model each.

Every family has a small model and the full one it stands for, as in `zoo_models.py`; nothing is fetched. `sites` leave the
small networks out that end in boxes, classes or masks. A detector of torchvision takes one image, whatever the batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import timm
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from zoo_family import Family, Positional, images

SMALL_SWIN: dict[str, Any] = {"window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)}
SMALL_VIT: dict[str, Any] = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


class SwinPyramid(nn.Module):
    """timm's Swin with `features_only`, and a feature pyramid: image -> level -> map `[batch, width, rows, columns]`."""

    def __init__(self, full: bool, size: int = 32) -> None:
        super().__init__()
        small = {} if full else {"img_size": size, "out_indices": (0, 1), **SMALL_SWIN}
        name = "swin_tiny_patch4_window7_224"
        self.body = cast(Any, timm.create_model(name, features_only=True, strict_img_size=False, **small))
        self.out_channels = 256 if full else 32
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), self.out_channels)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = (x.permute(0, 3, 1, 2) for x in self.body(image))
        return dict(self.fpn(OrderedDict((str(i), x) for i, x in enumerate(maps))))


class VitMap(nn.Module):
    """timm's ViT with `features_only`: image -> its last map, as the only level."""

    def __init__(self, full: bool) -> None:
        super().__init__()
        small: dict[str, Any] = {} if full else {"img_size": 32, **SMALL_VIT}
        small["out_indices"] = (11 if full else 1,)
        name = "vit_base_patch16_224"
        self.body = cast(Any, timm.create_model(name, features_only=True, dynamic_img_size=True, **small))
        self.out_channels = self.body.feature_info.channels()[-1]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"0": self.body(image)[-1]}


class Segmenter(nn.Module):
    """A pyramid whose levels are added at the finest size: classes for every pixel."""

    def __init__(self, full: bool, classes: int = 5) -> None:
        super().__init__()
        self.backbone = SwinPyramid(full)
        self.head = nn.Conv2d(self.backbone.out_channels, classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        finest, *others = self.backbone(image).values()
        total = sum((interpolate(x, finest.shape[-2:], mode="bilinear") for x in others), finest)
        return interpolate(self.head(total.relu()), image.shape[-2:], mode="bilinear")


class BoxHead(nn.Module):
    """A plain ViT's map at three scales, and convolutions over them: scores and distances to the four edges."""

    def __init__(self, full: bool, classes: int = 5) -> None:
        super().__init__()
        self.backbone = VitMap(full)
        width = self.backbone.out_channels
        self.scales = nn.ModuleList([nn.ConvTranspose2d(width, width, 2, 2), nn.Identity(), nn.MaxPool2d(2)])
        self.tower, self.scores, self.edges = (nn.Conv2d(width, n, 3, padding=1) for n in (width, classes, 4))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        last = self.backbone(image)["0"]
        towers = [self.tower(scale(last)).relu() for scale in self.scales]
        scores, edges = ([head(x).flatten(2) for x in towers] for head in (self.scores, self.edges))
        return torch.cat(scores, 2).transpose(1, 2), torch.cat(edges, 2).transpose(1, 2).exp()


def mask_rcnn(full: bool) -> MaskRCNN:
    """torchvision's, around the pyramid. It keeps its ten best boxes, whatever they score."""
    size, levels, few = (224, 4, {}) if full else (64, 2, {"rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 50})
    names = [str(i) for i in range(levels)]
    return MaskRCNN(
        SwinPyramid(full, size), num_classes=91 if full else 4, min_size=size, max_size=size,
        rpn_anchor_generator=AnchorGenerator(tuple((16 << i,) for i in range(levels)), ((0.5, 1.0, 2.0),) * levels),
        box_roi_pool=MultiScaleRoIAlign(names, 7, 2), mask_roi_pool=MultiScaleRoIAlign(names, 14, 2),
        box_score_thresh=0.0, box_detections_per_img=10, **few,
    )  # fmt: skip


class OneImage(nn.Module):
    """A detector of torchvision behind one tensor: the first image's boxes, labels, scores and masks."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        found = self.inner([pixels[0]])[0]
        return found["boxes"], found["labels"], found["scores"], found["masks"]


# fmt: off
def swin(full: bool, *stages: int) -> hf.SwinConfig:
    """Swin-T, or a small one of four stages (of two, where only those are named)."""
    sizes = {**SMALL_SWIN, "image_size": 32} if max(stages) < 3 else {
        "window_size": 4, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (2, 4, 4, 4), "image_size": 64}
    options: dict[str, Any] = {**({} if full else sizes), "out_features": [f"stage{i}" for i in stages]}
    return hf.SwinConfig(**options)


def hugging(name: str, arch: str, task: str, options: Callable[[bool], Mapping[str, Any]], outputs: str,
            sites: tuple[tuple[int, int], ...], size: int = 224, small: int = 32, no: Mapping[str, str] | None = None) -> Family:
    """transformers' `arch` for `task`; `options` are those of its config."""
    def make(full: bool) -> nn.Module:
        config = getattr(hf, arch + "Config")(**options(full))
        return Positional(getattr(hf, f"{arch}For{task}")(config), "pixel_values", outputs)
    return Family(name, make, partial(images, size=size, small=small), sites, no or {})


DETR = {"d_model": 48, "num_queries": 6, **{f"{side}_{what}": n for side in ("encoder", "decoder")
        for what, n in (("layers", 2), ("ffn_dim", 96), ("attention_heads", 3))}}
YOLOS = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96,
         "image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 6}
SEGFORMER = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [32, 64], "patch_sizes": [7, 3],
             "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 32,
             "num_labels": 5}
UPERNET = {"hidden_size": 32, "pool_scales": [1, 2], "auxiliary_channels": 16, "num_labels": 5}
MASK2FORMER = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 64, "encoder_layers": 2,
               "decoder_layers": 3, "num_attention_heads": 4, "dim_feedforward": 64, "num_queries": 6}
BOXES, MASKS = "logits pred_boxes", "class_queries_logits masks_queries_logits"

DOWNSTREAM = [
    Family("timm_swin_fpn", Segmenter, images, ((4, 4), (12, 12))),
    Family("timm_vit_boxes", BoxHead, images),
    Family("tv_maskrcnn_swin", lambda full: OneImage(mask_rcnn(full)), lambda full, _: images(full, 1, small=64),
           ((4, 4), (12, 12)), axes={}),
    hugging("hf_detr", "Detr", "ObjectDetection",
            lambda full: {"backbone_config": swin(full, 4 if full else 2), **({} if full else DETR)},
            BOXES, ((10, 8), (30, 24))),
    hugging("hf_yolos", "Yolos", "ObjectDetection", lambda full: {"image_size": [512, 512]} if full else YOLOS,
            BOXES, ((2, 2), (12, 12)), size=512),
    hugging("hf_segformer", "Segformer", "SemanticSegmentation", lambda full: {} if full else SEGFORMER,
            "logits", ((2, 2), (8, 8)), size=512),
    hugging("hf_upernet_swin", "UperNet", "SemanticSegmentation",
            lambda full: {"backbone_config": swin(full, 1, 2, 3, 4), "auxiliary_in_channels": 384 if full else 64,
                          **({} if full else UPERNET)},
            "logits", ((4, 4), (12, 12)), small=64),
    hugging("hf_mask2former_swin", "Mask2Former", "UniversalSegmentation",
            lambda full: {"backbone_config": swin(full, 1, 2, 3, 4), **({} if full else MASK2FORMER)},
            MASKS, ((8, 8), (30, 27)), small=64, no={"hidden": "shared"}),
]
