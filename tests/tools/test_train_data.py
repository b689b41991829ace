"""The images of the reference trainer: CIFAR-10 as it is tested on, and randomness that nothing but the seed decides."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import train
import train_data
from PIL import Image
from torch import nn

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the npm package has it, with 4 images a file."""
    folder, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        Image.fromarray(rng.integers(0, 256, (4, 1024, 3), np.uint8)).save(folder / f"{name}.png")
    (folder / "train_lables.json").write_text(json.dumps([i % 10 for i in range(20)]))
    (folder / "test_lables.json").write_text("[7, 1, 2, 3]")
    return folder


def test_cifar_is_read_and_tested_on_as_it_should(cifar: Path) -> None:
    found, test, classes = train_data.sources(f"cifar10:{cifar}")
    assert (len(found), len(test), classes) == (20, 4, 10)
    raw = np.asarray(Image.open(cifar / "data_batch_2.png")).reshape(-1, 32, 32, 3)
    assert np.array_equal(np.asarray(found[5][0]), raw[1])
    assert found[5][1] == 5
    model = timm.create_model("vit_small_patch14_dinov2", img_size=84, num_classes=10, depth=1)
    args = train.parsed(["--data", "", "--model", "", "--out", "", "--target", "macs=0.6", "--test-images", "3"])
    images, tests, plain = train_data.image_sets(args, model, found, test)
    assert (len(images), len(tests), len(plain)) == (20, 3, 20)
    x, label = tests[0]
    pixels = torch.from_numpy(np.asarray(Image.open(cifar / "test_batch.png")).reshape(-1, 32, 32, 3)[0].copy())
    wide = nn.functional.interpolate(pixels.permute(2, 0, 1)[None] / 255, size=84, mode="bicubic", align_corners=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(x, ((wide.clamp(0, 1)[0].permute(1, 2, 0) - mean) / std).permute(2, 0, 1), atol=1e-5)
    assert label == 7
    assert images[0][0].shape == x.shape


def test_augmentation_depends_on_seed_epoch_and_number_alone(cifar: Path) -> None:
    found, test, _ = train_data.sources(f"cifar10:{cifar}")
    args = train.parsed(["--data", "", "--model", "", "--out", "", "--target", "macs=0.6"])
    images, tests, _ = train_data.image_sets(args, timm.create_model("test_vit", img_size=32), found, test)
    first, later = images[3][0], images[4][0]
    torch.rand(7)
    assert torch.equal(images[3][0], first)
    assert not torch.equal(first, later)
    images.epoch = 1
    assert not torch.equal(images[3][0], first)
    assert torch.equal(tests[0][0], tests[0][0])
    whole = images.order(0, 1, 20, 0)
    assert sorted(whole) == list(range(20))
    assert images.order(0, 1, 20, 10) == whole[10:]
    assert images.order(1, 2, 10, 4) == whole[1::2][4:]
    images.epoch = 2
    assert images.order(0, 1, 20, 0) != whole


def test_a_run_on_cifar(cifar: Path, tmp_path: Path) -> None:
    given = [
        "--data",
        f"cifar10:{cifar}",
        "--model",
        "test_vit",
        "--image-size",
        "32",
        "--out",
        str(tmp_path),
        "--target",
        "macs=0.7",
    ]
    more = [
        "--prune-recipe",
        "vbp",
        "--calibrate",
        "16",
        "--batch",
        "8",
        "--limit-steps",
        "3",
        "--workers",
        "0",
        "--train-images",
        "16",
    ]
    assert train.main([*given, *more]) == 0
    log = json.loads((tmp_path / "log.json").read_text())
    assert log["macs"][1] <= 0.7 * log["macs"][0]
    assert [e["step"] for e in log["epochs"]] == [2, 3]  # two steps an epoch, and the limit
