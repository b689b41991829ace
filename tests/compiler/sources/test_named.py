"""Models by name: built by timm or transformers, exported, and pruned like any file."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from conftest import PLAIN, Command
from models import photos, run_file
from safetensors.torch import save_file
from small import vit_of_transformers
from zoo_exports import quiet

import toastc
from toastc.compiler.sources.named import built
from toastc.system.errors import ToastcError

SMALL = "timm:vit_tiny_patch16_224?img_size=32&depth=2&num_classes=10"


def shrunk(here: Command, name: str, folder: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return here(name, "-o", folder / "small.onnx", "--target", "macs=0.6", *PLAIN, *more, "--json")


def test_a_timm_model_comes_with_its_weights(here: Command, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    made = here(SMALL, "-o", tmp_path / "dense.onnx", "--weights", tmp_path / "w.safetensors", "--json")
    assert made.returncode == 0, made.stderr
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run_file(tmp_path / "dense.onnx", images), expected, atol=1e-4)
    made = shrunk(here, SMALL, tmp_path, "--weights", tmp_path / "w.safetensors")
    report = json.loads(made.stdout)
    assert report["model"] == SMALL
    assert report["after"]["macs"] <= 0.6 * report["before"]["macs"]
    assert run_file(tmp_path / "small.onnx", images).shape == expected.shape


def test_a_model_of_transformers_is_a_folder(here: Command, tmp_path: Path) -> None:
    with quiet():
        model = vit_of_transformers(num_labels=7)
        model.save_pretrained(tmp_path / "vit")
        transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[1.0, 2.0, 3.0]).save_pretrained(tmp_path / "vit")
    made = here(f"hf:{tmp_path / 'vit'}", "-o", tmp_path / "dense.onnx")
    assert made.returncode == 0, made.stderr
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).logits.numpy()
    np.testing.assert_allclose(run_file(tmp_path / "dense.onnx", images), expected, atol=1e-4)
    assert shrunk(here, f"hf:{tmp_path / 'vit'}", tmp_path).returncode == 0
    source = built(f"hf:{tmp_path / 'vit'}")
    assert source.preprocess is not None
    assert source.preprocess.mean == (0.1, 0.2, 0.3)


def test_calibration_uses_the_preprocessing_that_comes_with_the_model(here: Command, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 4)
    made = shrunk(here, SMALL, tmp_path, "--weights", "random", "--recipe", "vbp", "--calibrate", folder)
    assert made.returncode == 0, made.stderr
    assert "mean (0.5, 0.5, 0.5)" in " ".join(json.loads(made.stdout)["notes"])


def test_measuring_beforehand_uses_it_too(here: Command, tmp_path: Path) -> None:
    made = here("calibrate", SMALL, photos(tmp_path / "photos", 4), "--weights", "random", "-o", tmp_path / "m", "--json")
    assert made.returncode == 0, made.stderr
    assert "mean (0.5, 0.5, 0.5)" in " ".join(json.loads(made.stdout)["notes"])


def test_images_of_one_channel(here: Command, tmp_path: Path) -> None:
    with quiet():
        vit_of_transformers(num_channels=1).save_pretrained(tmp_path / "grey")
    made = here(f"hf:{tmp_path / 'grey'}", "-o", tmp_path / "dense.onnx", "--quiet")
    assert made.returncode == 0, made.stderr
    assert run_file(tmp_path / "dense.onnx", np.zeros((2, 1, 32, 32), np.float32)).shape == (2, 2)


@pytest.mark.parametrize("more", [["--dry-run"], ["--report", "r.html"], ["--plan-out", "p"], ["--calibrate", "photos"]])
def test_a_name_alone_is_exported_and_nothing_else(
    here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    """What exporting does not do is refused, not passed over."""
    monkeypatch.chdir(tmp_path)
    made = here(SMALL, "-o", "o.onnx", "--weights", "random", *more)
    assert made.returncode == 2 and "is required" in made.stderr
    assert not list(tmp_path.iterdir())


def test_weights_are_for_names(here: Command, tiny: Path, tmp_path: Path) -> None:
    made = here(tiny, "-o", tmp_path / "o.onnx", "--weights", "w.safetensors", "--target", "macs=0.6", *PLAIN, "--quiet")
    assert made.returncode == 2 and "weights: are for a model given by name" in made.stderr


def test_names_can_be_looked_at_without_weights(here: Command) -> None:
    made = here("inspect", SMALL, "--json")
    assert [s["name"] for s in json.loads(made.stdout)["sites"]][:2] == ["blocks.0.attn", "blocks.0.mlp"]
    assert here("kernels", SMALL, "--json").returncode == 0


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("timm:", "give a model's name"),
        ("timm:no_such_model", "Unknown model"),
        ("timm:vit_tiny_patch16_224?no_such_option=1", "can not be had"),
        ("hf:no/such/folder", "can not be had"),
    ],
)
def test_what_can_not_be_had_is_said_in_one_line(here: Command, tmp_path: Path, name: str, word: str) -> None:
    made = here(name, "-o", tmp_path / "o.onnx", "--weights", "random", "--quiet")
    assert made.returncode == 2
    assert word in made.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_without_weights_it_is_said_where_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(ToastcError, match=r"can not be had \(.*\); give --weights FILE.safetensors, or --weights random"):
        toastc.export("hf:no/such/folder", tmp_path / "o.onnx")


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(tmp_path / "ran").touch, ())  # type: ignore[return-value]

    torch.save({"state_dict": Evil()}, tmp_path / "w.pth")
    with pytest.raises(ToastcError, match="can not be had"):
        built(SMALL, str(tmp_path / "w.pth"))
    assert not (tmp_path / "ran").exists()


def test_python_takes_names_too(tmp_path: Path) -> None:
    report = toastc.prune(SMALL, {"ffn": 0.5}, weights="random", recipe="magnitude", output=tmp_path / "s.onnx").report
    assert report.after.params < report.before.params
    assert (tmp_path / "s.onnx").exists()
