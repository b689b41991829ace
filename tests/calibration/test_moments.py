"""Moments: the sums that losses are made of, over numpy and torch, and their file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from conftest import Command
from drawn import batches, correlated

import toastc
from toastc.calibration import Moments, Sums
from toastc.system.errors import ToastcError


def test_sums_are_what_numpy_says_and_add_up(rng: np.random.Generator) -> None:
    rows = correlated(rng, 500, 2, 4)
    whole = Sums.of(rows, together=True)
    parts = Sums.of(rows[:100], True) + Sums.of(rows[100:], True)
    for sums in (whole, parts):
        assert np.allclose(sums.mean, rows.mean(0))
        assert np.allclose(sums.covariance[0], np.cov(rows.reshape(500, 8).T, bias=True))
        assert np.isclose(sums.energy, (rows**2).sum())
    apart = Sums.of(rows, together=False)
    assert np.allclose(apart.second[1], rows[:, 1].T @ rows[:, 1] / 500)


def test_few_vectors_are_kept_until_they_are_as_many_as_channels(rng: np.random.Generator) -> None:
    rows = correlated(rng, 60, 2, 8)
    sums = Sums.of(rows[:4], True)
    for seen, at in enumerate(range(4, 60, 4), 2):
        sums = sums + Sums.of(rows[at : at + 4], True)
        assert (sums.rows is None) == (seen > 3)
        apart = (rows[: at + 4] - rows[: at + 4].mean(axis=0)).reshape(-1, 16)
        assert np.allclose(sums.scatter[0], apart.T @ apart) and np.allclose(sums.squares, (rows[: at + 4] ** 2).sum(axis=0))
    few = Sums.of(rows[:9], True)
    assert few.rows is not None and few.outer.nbytes < Sums.of(rows[:16], True).outer.nbytes
    assert np.allclose(few.about(np.zeros((2, 8))).scatter[0], rows[:9].reshape(9, 16).T @ rows[:9].reshape(9, 16))


def test_what_hardly_varies_is_not_lost_in_its_mean(rng: np.random.Generator) -> None:
    """In single precision, over many batches, and shared by processes."""
    rows = (1000 + 1e-2 * rng.standard_normal((4000, 1, 3))).astype(np.float32)
    rows[:, 0, 2] = 7.3
    parts = [Sums.of(rows[at : at + 50], True) for at in range(0, 4000, 50)]
    mean = sum(part.total for part in parts) / 4000
    shared = sum(part.about(mean).scatter for part in [Sums.of(rows[:900], True), Sums.of(rows[900:], True)])
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    expected = np.cov(rows[:, 0].astype(np.float64).T, bias=True)
    assert whole.scatter.dtype == np.float32
    for scatter in (whole.scatter, shared):
        assert np.allclose(scatter[0] / 4000, expected, rtol=2e-2, atol=2e-6)
    assert expected[2, 2] == whole.scatter[0, 2, 2] == 0


def test_sums_of_torch_are_those_of_numpy(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    rows = correlated(rng, 50, 2, 4).astype(np.float32)
    for a, b in zip(Sums.of(rows, True).arrays().values(), Sums.of(torch.from_numpy(rows), True).arrays().values(), strict=True):
        assert np.allclose(a, b, rtol=1e-5)


def test_moments_come_back_from_their_file(rng: np.random.Generator, tmp_path: Path) -> None:
    moments = Moments({"a.vo/out": Sums.of(correlated(rng, 9, 2, 3), True)}, 9, "somewhere")
    moments.save(tmp_path / "m.safetensors")
    again = Moments.load(tmp_path / "m.safetensors")
    assert (again.images, again.source, list(again)) == (9, "somewhere", ["a.vo/out"])
    assert np.array_equal(again["a.vo/out"].scatter, moments["a.vo/out"].scatter)
    (tmp_path / "m.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ToastcError, match="not a moments file"):
        Moments.load(tmp_path / "m.safetensors")


def test_torch_and_onnx_find_the_same_moments(data_folder: Path) -> None:
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = timm.models.VisionTransformer(**sizes).eval()
    torch.onnx.export(model, (torch.zeros(2, 3, 16, 16),), data_folder / "m.onnx", dynamo=True, opset_version=20, verbose=False)
    ratios, data = {"attention": 0.5, "ffn": 0.5, "round_to": 4}, [batches(2, seed) for seed in range(16)]
    a = toastc.prune(data_folder / "m.onnx", ratios, data=data, output=data_folder / "small.onnx")
    b = toastc.prune(model, ratios, data=data, example_inputs=(torch.zeros(2, 3, 16, 16),))
    assert a.moments is not None
    assert b.moments is not None
    assert sorted(a.moments) == sorted(b.moments)
    for key in (k for k in a.moments if k.endswith("/out")):  # one graph scales its queries, the other its logits
        assert np.allclose(
            a.moments[key].scatter, b.moments[key].scatter, rtol=1e-3, atol=1e-4 * np.abs(a.moments[key].scatter).max()
        )
    x = batches(2, 99)
    with torch.no_grad():
        theirs = b.model(torch.from_numpy(x)).numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(data_folder / "small.onnx"))
    ours = session.run(None, {session.get_inputs()[0].name: x})[0]
    assert np.allclose(ours, theirs, atol=1e-3 * np.abs(ours).max())


def test_moments_stand_for_the_data(here: Command, data_folder: Path) -> None:
    """What is pruned with a moments file is, bit by bit, what is pruned with the data; unless no inputs may be kept."""
    path = models.save(models.vit(), data_folder / "model.onnx")
    data, file, bare = data_folder / "data.npy", data_folder / "m.safetensors", data_folder / "bare.safetensors"
    made = here("calibrate", path, data, "-o", file, "--json", "--quiet")
    assert made.returncode == 0 and json.loads(made.stdout)["inside"] == 64
    assert "holds none of the inputs" in here("calibrate", path, data, "-o", bare, "--no-inputs").stdout
    assert bare.stat().st_size < file.stat().st_size - 64 * 3 * 16 * 16 * 4
    results = {}
    for name, given in {"data": {"data": data}, "file": {"moments": file}, "bare": {"moments": bare}}.items():
        result = toastc.prune(path, target="macs=0.8", output=data_folder / f"{name}.onnx", **given)
        results[name] = (data_folder / f"{name}.onnx").read_bytes(), result.report.measured
    assert results["file"] == results["data"] != results["bare"]
    toastc.prune(path, target="macs=0.7", data=data, moments_out=data_folder / "again.safetensors")
    assert Moments.load(data_folder / "again.safetensors").inputs.keys() == {"image"}


def test_moments_are_reused_for_another_budget(data_folder: Path) -> None:
    path = models.save(models.vit(), data_folder / "model.onnx")
    first = toastc.prune(path, target="macs=0.8", data=data_folder / "data.npy", moments_out=data_folder / "m.safetensors")
    again = toastc.prune(path, target="macs=0.8", data=data_folder / "data.npy", moments=data_folder / "m.safetensors")
    assert first.plan.to_dict() == again.plan.to_dict()
    other = models.save(models.vit("tied"), data_folder / "other.onnx")
    assert toastc.prune(other, {"attention": 0.5}, moments=data_folder / "m.safetensors").report.verified["ok"]  # type: ignore[index]


def test_constant_activations_are_no_accident(data_folder: Path) -> None:
    """An FFN that always says the same goes, and its constant stays."""
    dense = models.weights()
    for name in list(dense):
        if "mlp.fc1.weight" in name:
            dense[name] = np.zeros_like(dense[name])
    path = models.save(models.vit(dense=dense), data_folder / "model.onnx")
    toastc.prune(path, {"ffn": 0.9, "round_to": 4}, data=data_folder / "data.npy", output=data_folder / "small.onnx")
    expected = models.run(path)[0]
    assert np.allclose(models.run(data_folder / "small.onnx")[0], expected, atol=1e-4 * np.abs(expected).max())


def test_synthetic_images_need_no_data(data_folder: Path) -> None:
    path = models.save(models.vit(), data_folder / "model.onnx")
    passes = "collect-moments{synthetic=32},analyse-losses,measure-gains{most=4},allocate-widths,plan-losses"
    result = toastc.prune(path, target="macs=0.8", passes=passes)
    assert any("synthetic" in note for note in result.report.notes)
