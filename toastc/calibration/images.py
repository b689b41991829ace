"""From an image file to what a model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..system.errors import ToastcError

LONGEST = 16  # times as long as wide
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """Shorter side to `size / crop`, the centre of `size` pixels, then (x - mean) / std."""

    size: int = 0  # 0: the model's, or 224 where that is free
    crop: float = 0.875
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ToastcError("calibrate: mean and std have one number for each channel, 1 or 3 of them")
        if min(self.std) <= 0:
            raise ToastcError("calibrate: std is above zero")

    def fit(self, sizes: Sequence[int | None]) -> Preprocess:
        """For an input of these sizes, [n, channels, height, width]."""
        if len(sizes) != 4 or (sizes[2] or 0) != (sizes[3] or 0):
            raise ToastcError(f"calibrate: the model takes no square images but {sizes}; give .npy, .npz or .safetensors")
        return replace(self, size=self.size or sizes[2] or 224)

    def __call__(self, path: Path) -> np.ndarray:
        """[channels, size, size]"""
        return np.asarray(self.scaled(self.pixels(path)[None])[0])

    def pixels(self, path: Path) -> np.ndarray:
        """[size, size, channels], bytes"""
        from PIL import Image

        try:
            with Image.open(path) as opened:
                image = in_bytes(opened).convert("RGB" if len(self.mean) == 3 else "L")
        except Image.DecompressionBombError as error:  # a class of its own
            raise ValueError(str(error)) from None
        image = middle(image)
        scale = self.size / self.crop / min(image.size)
        width, height = (max(self.size, round(s * scale)) for s in image.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + self.size, top + self.size))
        return np.asarray(image).reshape(self.size, self.size, len(self.mean))

    def scaled(self, pixels: np.ndarray) -> np.ndarray:
        """[images, channels, size, size], as the model takes them."""
        mean, std = (np.array(each, np.float32) for each in (self.mean, self.std))
        return np.transpose((pixels.astype(np.float32) / 255 - mean) / std, (0, 3, 1, 2))

    @staticmethod
    def of(config: Any) -> Preprocess | None:
        """As a model's own configuration says (timm's `pretrained_cfg`); None if it has none."""
        if not isinstance(config, Mapping) or "mean" not in config or "std" not in config:
            return None
        return Preprocess(crop=float(config.get("crop_pct") or 0.875), mean=tuple(config["mean"]), std=tuple(config["std"]))

    def __str__(self) -> str:
        return f"size {self.size}, crop {self.crop:g}, mean {self.mean}, std {self.std}"


def in_bytes(image: Any) -> Any:
    """Of 16 bits a channel the upper eight: Pillow would take whatever is above 255 for white."""
    from PIL import Image

    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode.startswith("I;16") else image


def middle(image: Any) -> Any:
    """Of a strip its middle: enlarged as a whole, it would not fit into memory."""
    width, height = image.size
    most = LONGEST * min(width, height)
    left, top = (max(0, side - most) // 2 for side in (width, height))
    return image.crop((left, top, width - left, height - top)) if left or top else image
