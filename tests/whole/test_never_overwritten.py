"""No output is ever written over anything that was read, whatever its name."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest
import timm
from conftest import PLAIN, Command
from safetensors.torch import save_file

NAME = "timm:vit_tiny_patch16_224?img_size=32&depth=1&num_classes=10"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.save_external(models.vit(), tmp_path / "model.onnx", "weights.bin")
    np.save(tmp_path / "data.npy", np.zeros((8, 3, 16, 16), np.float32))
    (tmp_path / "r.json").write_text('{"ffn": 0.5}')
    return tmp_path


COMMANDS = {
    "prune": ["model.onnx", "-o", "weights.bin", "--ratios", "r.json", *PLAIN],
    "plan": ["model.onnx", "-o", "o.onnx", "--ratios", "r.json", *PLAIN, "--plan-out", "weights.bin"],
    "calibrate": ["calibrate", "model.onnx", "data.npy", "-o", "weights.bin"],
    "report": ["report", "model.onnx", "-o", "weights.bin"],
    "compare": ["compare", "r.json", "model.onnx", "-o", "weights.bin"],
    "the data": ["calibrate", "model.onnx", "data.npy", "-o", "data.npy"],
    "the ratios": ["model.onnx", "-o", "o.onnx", "--ratios", "r.json", *PLAIN, "--report", "r.json"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_files_that_were_read(folder: Path, here: Command, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    made = here(*words, "--quiet")
    assert made.returncode == 2 and "would overwrite the input" in made.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "more", [["-o", "w.safetensors"], ["-o", "o.onnx", "--target", "macs=0.7", *PLAIN, "--plan-out", "w.safetensors"]]
)
def test_weights_of_a_model_given_by_name(
    here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=10).state_dict(), "w.safetensors")
    before = Path("w.safetensors").read_bytes()
    made = here(NAME, "--weights", "w.safetensors", *more, "--quiet")
    assert made.returncode == 2 and "would overwrite the input" in made.stderr
    assert Path("w.safetensors").read_bytes() == before
