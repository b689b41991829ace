"""The ImageNet evaluation, on a tiny folder of the same layout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from models import photos

TOOL = Path(__file__).resolve().parents[2] / "tools" / "eval_imagenet.py"
NAME = "deit_tiny_patch16_224"


def test_a_folder_of_classes(tmp_path: Path) -> None:
    for name in ("n01", "n02", "n03"):
        photos(tmp_path / "val" / name, 2, ending="JPEG")
    torch.manual_seed(0)
    model = timm.create_model(NAME, depth=1, num_classes=3).eval()
    with torch.no_grad():
        model.head.weight.mul_(0)
        model.head.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))  # always says the second class
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        model,
        (torch.zeros(2, 3, 224, 224),),
        tmp_path / "m.onnx",
        dynamo=True,
        opset_version=20,
        verbose=False,
        dynamic_shapes=(batch,),
    )
    files = [str(tmp_path / "m.onnx")] * 2
    done = subprocess.run(
        [sys.executable, str(TOOL), str(tmp_path / "val"), "--onnx", *files[:1], "--like", NAME, "--json", "--batch", "4"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["images"], found["classes"]) == (6, 3)
    assert found["models"][files[0]]["top1"] == pytest.approx(1 / 3)
    assert found["models"][files[0]]["top5"] == 1.0


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    for arguments in ([str(tmp_path), "--timm", NAME], [str(tmp_path / "no"), "--timm", NAME], [str(tmp_path)]):
        done = subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
