"""Calibration data: folders, arrays, iterables, and everything that can be wrong with them."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import models
import numpy as np
import pytest
from conftest import Command
from models import photos
from PIL import Image
from safetensors.numpy import save_file

import toastc
from toastc.calibration import Moments, Preprocess, open_data
from toastc.system.errors import ToastcError

SIZES = {"image": (None, 3, 16, 16)}


def test_a_folder_of_images(tmp_path: Path) -> None:
    data = open_data(photos(tmp_path / "photos", 5), SIZES, batch=2)
    shapes = [b["image"].shape for b in data]
    assert shapes == [(2, 3, 16, 16), (2, 3, 16, 16), (1, 3, 16, 16)]
    assert any("mean (0.485" in note for note in data.notes)


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever comes first: all of them, or the first few; and as many are kept as there is room for."""
    folder, seen = photos(tmp_path / "photos", 70).resolve(), []
    decode = Preprocess.pixels
    monkeypatch.setattr(Preprocess, "pixels", lambda self, path: seen.append(path) or decode(self, path))
    data = open_data(folder, {"x": (None, 3, 16, 16)})
    assert data.count == 70
    assert len(next(iter(data))["x"]) == 32
    whole = [batch["x"] for batch in data]
    again = [batch["x"] for batch in data]
    assert [len(x) for x in whole] == [32, 32, 6] and all(map(np.array_equal, whole, again))
    assert len(set(seen)) == 70
    before = len(seen)
    list(data)
    assert len(seen) == before
    monkeypatch.setattr("toastc.calibration.decoding.DECODED", 40 * 3 * 16 * 16)
    data = open_data(folder, {"x": (None, 3, 16, 16)})
    list(data), seen.clear(), list(data)
    assert len(seen) == 38


def test_the_seed_decides_which_images(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 8)

    def first(seed: int) -> np.ndarray:
        return next(iter(open_data(folder, SIZES, limit=3, seed=seed)))["image"]

    assert first(0).shape[0] == 3
    assert np.array_equal(first(0), first(0))
    assert not np.array_equal(first(0), first(1))


def test_preprocessing_by_the_book(tmp_path: Path) -> None:
    Image.new("RGB", (64, 32), (255, 0, 51)).save(tmp_path / "a.png")
    array = Preprocess(16, 1.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.5))(tmp_path / "a.png")
    assert array.shape == (3, 16, 16)
    assert np.allclose(array, np.array([2, -2, -0.6])[:, None, None], atol=1e-5)


def test_damaged_images_are_skipped_counted_and_named(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 4)
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (folder / "broken.jpg").write_bytes(b"no image")
    data = open_data(folder, SIZES)
    assert sum(len(b["image"]) for b in data) == 3
    assert any(note.startswith("2 of 5 images") and "broken.jpg" in note for note in data.notes)


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "RGBA", "LA", "P", "1", "CMYK"])
def test_images_of_every_mode_look_the_same(tmp_path: Path, mode: str) -> None:
    """A half-grey image is half grey, however it is written; one of 16 bits is not white."""
    image = Image.fromarray(np.full((20, 20), 0x8080, np.uint16)) if mode == "I;16" else Image.new("L", (20, 20), 128)
    image = image if mode == "I;16" else image.convert("RGB").convert(mode) if mode in ("CMYK", "P") else image.convert(mode)
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    image.save(path)
    grey = Preprocess(16, 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(path)
    assert np.allclose(grey.mean(), 0.5, atol=0.06)


def test_strips_and_bombs(tmp_path: Path) -> None:
    """A strip is not enlarged as a whole, and an image larger than any photo is skipped."""
    folder = photos(tmp_path / "photos", 2)
    Image.new("RGB", (30_000, 1)).save(folder / "strip.png")
    data = bytearray((folder / "0.png").read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(data)
    batches = open_data(folder, {"image": (None, 3, 224, 224)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(len(b["image"]) for b in batches) == 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000, "kilobytes"
    assert any("bomb.png" in note for note in batches.notes)


@pytest.mark.parametrize("form", ["npy", "npz", "safetensors", "list", "tensors"])
def test_arrays_in_every_form(tmp_path: Path, form: str) -> None:
    x = np.random.default_rng(0).standard_normal((7, 3, 16, 16)).astype(np.float32)
    path = tmp_path / f"x.{form}"
    if form == "npy":
        np.save(path, x)
    elif form == "npz":
        np.savez(path, image=x, other=np.zeros(3))
    elif form == "safetensors":
        save_file({"image": x}, path)
    source = [{"image": x[:4]}, x[4:]] if form in ("list", "tensors") else path
    if form == "tensors":
        torch = pytest.importorskip("torch")
        source = [(torch.from_numpy(x[:4]), "label"), torch.from_numpy(x[4:])]
    rows = np.concatenate([b["image"] for b in open_data(source, SIZES)])
    assert np.array_equal(np.sort(rows, axis=0), np.sort(x, axis=0))
    assert sum(len(b["image"]) for b in open_data(source, SIZES, limit=5)) == 5


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda p: p / "nowhere", "no such file"),
        (lambda p: p, "holds no images"),
        (lambda p: np.save(p / "x.npy", np.zeros((4, 3, 8, 8))) or p / "x.npy", "the model takes n x 3 x 16 x 16"),
        (lambda p: np.save(p / "x.npy", np.full((4, 3, 16, 16), np.nan)) or p / "x.npy", "NaN"),
        (lambda p: np.save(p / "x.npy", np.zeros((0, 3, 16, 16))) or p / "x.npy", "holds no inputs"),
        (lambda p: (p / "x.npy").write_bytes(b"junk") and p / "x.npy", "can not be read"),
        (lambda p: (p / "x.txt").write_bytes(b"junk") and p / "x.txt", "give a folder of images"),
        (lambda p: np.savez(p / "x.npz", a=np.zeros(1), b=np.zeros(1)) or p / "x.npz", "no array called image"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, make: object, word: str) -> None:
    source = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(ToastcError, match=word):
        list(open_data(source, SIZES))


def test_the_command_with_a_folder_of_images(here: Command, tmp_path: Path) -> None:
    model = models.save(models.vit(), tmp_path / "model.onnx")
    folder = photos(tmp_path / "photos", 40)
    extra = ["--moments-out", tmp_path / "m.safetensors", "--ratios-out", tmp_path / "r.json", "--images", 32]
    made = here(model, "-o", tmp_path / "a.onnx", "--target", "macs=0.8", "--calibrate", folder, "--json", "--quiet", *extra)
    assert made.returncode == 0, made.stderr
    report = json.loads(made.stdout)
    assert report["after"]["macs"] <= 0.8 * report["before"]["macs"]
    assert any("tokens are few" in note for note in report["notes"])
    again = here(
        model, "-o", tmp_path / "b.onnx", "--ratios", tmp_path / "r.json", "--moments", tmp_path / "m.safetensors", "--quiet"
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "b.onnx").stat().st_size == (tmp_path / "a.onnx").stat().st_size


@pytest.mark.parametrize(
    "flags", ["--calibrate {no}", "--calibrate {empty}", "--moments {no}", "--images 0", "--crop 2", "--mean x"]
)
def test_bad_flags_are_one_line_and_a_two(here: Command, tiny: Path, ratio_file: Path, tmp_path: Path, flags: str) -> None:
    (tmp_path / "empty").mkdir()
    words = flags.format(no=tmp_path / "no", empty=tmp_path / "empty").split()
    made = here(tiny, "-o", tmp_path / "out.onnx", "--ratios", ratio_file, "--quiet", *words)
    assert made.returncode == 2
    assert len(made.stderr.splitlines()) == 1, made.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    """torchrun shares the data and the couplings; sums are reduced, so moments, gains and the plan come out the same."""
    model, data = tmp_path / "m.onnx", tmp_path / "data.npy"
    models.save(models.vit(models.weights()), model)
    np.save(data, np.random.default_rng(0).standard_normal((100, 3, models.IMAGE, models.IMAGE)).astype(np.float32))
    module, runs = ["-m", "toastc.calibrate", str(model), str(data), "--quiet", "-o"], {}
    for count in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
        file = tmp_path / f"{count}.safetensors"
        done = subprocess.run([sys.executable, *launch, *module, str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        runs[count] = Moments.load(file)
    one, two = runs[1], runs[2]
    assert one.images == two.images == 100
    assert list(one) == list(two)
    for key in one:
        for name, array in one[key].arrays().items():
            assert np.allclose(array, two[key].arrays()[name], rtol=1e-4, atol=1e-4 * np.abs(array).max()), (key, name)
    assert one.gains.keys() == two.gains.keys()
    assert np.allclose(list(one.gains.values()), list(two.gains.values()), rtol=1e-3)
    plans = [toastc.prune(model, target="macs=0.6", moments=runs[n]).plan.to_dict() for n in (1, 2)]
    assert plans[0] == plans[1]


def test_processes_read_together_what_one_reads(tmp_path: Path) -> None:
    """Whatever the source, and with a limit."""
    folder = photos(tmp_path / "photos", 11)
    rows = np.arange(11 * 3 * 16 * 16, dtype=np.float32).reshape(11, 3, 16, 16)
    np.save(tmp_path / "a.npy", rows)
    for source in (folder, tmp_path / "a.npy", [rows[:4], rows[4:8], rows[8:]]):
        data = open_data(source, SIZES, batch=3, limit=9)
        parts = [open_data(source, SIZES, batch=3, limit=9).part(rank, 2) for rank in (0, 1)]
        whole = np.concatenate([b["image"] for b in data])
        both = np.concatenate([b["image"] for part in parts for b in part])
        assert len(whole) == 9
        assert sorted(map(float, both.sum(axis=(1, 2, 3)))) == sorted(map(float, whole.sum(axis=(1, 2, 3))))


def test_a_timm_model_brings_its_preprocessing(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=16, depth=1, num_classes=3).eval()
    folder = photos(tmp_path / "photos", 4)
    result = toastc.prune(model, {"ffn": 0.5}, data=folder)
    assert any("mean (0.5, 0.5, 0.5)" in note and "crop 0.9" in note for note in result.report.notes)


def test_measuring_uses_the_preprocessing_of_a_module(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=16, depth=1, num_classes=3).eval()
    notes = toastc.measure(model, photos(tmp_path / "photos", 4)).notes
    assert any("mean (0.5, 0.5, 0.5)" in note and "crop 0.9" in note for note in notes)


def test_a_deviation_of_zero_is_no_deviation(here: Command, tiny: Path, tmp_path: Path) -> None:
    made = here("calibrate", tiny, photos(tmp_path / "photos", 4), "-o", tmp_path / "m", "--std", "0,1,1", "--quiet")
    assert made.returncode == 2 and made.stderr == "toastc: calibrate: std is above zero\n"


def test_a_generator_is_refused_before_it_is_used_up(tiny: Path) -> None:
    batches = (np.zeros((2, 3, 16, 16), np.float32) for _ in range(2))
    with pytest.raises(ToastcError, match="can be read only once; give a list"):
        toastc.prune(tiny, target="macs=0.6", data=batches)
