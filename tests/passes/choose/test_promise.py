"""A budget found by what is lost: the promise holds on inputs that nothing was fitted on, and not much more would go."""

from __future__ import annotations

import json
from pathlib import Path

import models
import numpy as np
import pytest
from conftest import Command
from drawn import batches
from PIL import Image

import toastc
from toastc.calibration import open_data
from toastc.calibration.labels import LABEL
from toastc.system.errors import ToastcError

COUNT = 96


@pytest.fixture
def given(tmp_path: Path) -> tuple[Path, np.ndarray]:
    return models.save(models.vit(), tmp_path / "model.onnx"), batches(COUNT)


def apart(data: np.ndarray, count: int) -> np.ndarray:
    first, _ = open_data(data, {"image": (None, *data.shape[1:])}).divided(count)
    return np.concatenate([batch["image"] for batch in first])


@pytest.mark.parametrize("recipe", ["default", "corp", "magnitude"])
def test_an_error_is_kept_on_inputs_that_nothing_was_fitted_on(
    given: tuple[Path, np.ndarray], tmp_path: Path, recipe: str
) -> None:
    path, data = given
    small = tmp_path / "small.onnx"
    result = toastc.prune(path, target="error=0.1", data=data, recipe=recipe, output=small)
    held = apart(data, 24)
    dense, made = models.run_file(path, held), models.run_file(small, held)
    promise = result.report.promise
    assert promise is not None
    assert promise["inputs"] == len(held) == 24
    assert promise["measured"] == pytest.approx(np.linalg.norm(made - dense) / np.linalg.norm(dense), rel=1e-3)
    assert promise["measured"] < promise["at_worst"] <= 0.1  # type: ignore[operator]
    if result.moments is not None:
        assert result.moments.images == COUNT - 24
    assert any("error=0.1 is kept" in note for note in result.report.notes)
    assert "error=0.1 is kept" in repr(result)


def test_what_is_promised_decides_how_much_goes(given: tuple[Path, np.ndarray]) -> None:
    path, data = given
    left = []
    for bound in (0.005, 0.01, 0.02):
        report = toastc.prune(path, target=f"error={bound}", data=data, dry_run=True).report
        left.append(report.after.macs)
        assert report.promise["at_worst"] <= bound  # type: ignore[index]
        more = toastc.prune(path, target=report.after.macs / report.before.macs - 0.15, data=data[24:]).report
        assert more.measured["error"] > bound  # type: ignore[index, operator]
    assert left == sorted(left, reverse=True)
    assert left[0] > left[-1]


def test_where_nothing_can_be_cut_the_model_stays(given: tuple[Path, np.ndarray]) -> None:
    path, data = given
    result = toastc.prune(path, target="error=1e-9", data=data)
    assert not result.changed
    assert any("nothing can be cut within error=1e-09" in note for note in result.report.notes)


def test_agreement_and_accuracy(given: tuple[Path, np.ndarray], tmp_path: Path, toastc: Command) -> None:
    path, data = given
    np.save(tmp_path / "data.npy", data)
    labels = models.run_file(path, data).argmax(axis=1)  # the dense model is right
    np.save(tmp_path / "labels.npy", labels)
    common = (path, "-o", tmp_path / "small.onnx", "--calibrate", tmp_path / "data.npy", "--json", "--quiet")
    agree = json.loads(toastc(*common, "--target", "agree=0.85").stdout)["promise"]
    drop = json.loads(toastc(*common, "--target", "drop=15", "--labels", tmp_path / "labels.npy").stdout)["promise"]
    assert drop["what"] == "drop"
    assert agree["measured"] == pytest.approx(1 - drop["measured"] / 100)  # of a model that is right they say the same
    held = apart(data, 24)
    same = models.run_file(path, held).argmax(axis=1) == models.run_file(tmp_path / "small.onnx", held).argmax(axis=1)
    assert same.mean() == pytest.approx(agree["measured"])


def test_class_folders_tell_what_images_are(given: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, _ = given
    rng = np.random.default_rng(0)
    for name in ("3", "1"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for n in range(20):
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / "images" / name / f"{n}.png")
    from toastc.calibration import Labels

    folder = tmp_path / "images"
    labelled = open_data(folder, {"image": (None, 3, 32, 32)}, labels=Labels.of_folders(folder))
    assert sorted(np.concatenate([batch[LABEL] for batch in labelled.labelled()]).tolist()) == [1] * 20 + [3] * 20
    assert all(list(batch) == ["image"] for batch in labelled)
    by_itself = toastc.prune(path, target="drop=40", data=folder).report.promise
    beside = toastc.prune(path, target="drop=40", data=batches(40), labels=folder).report.promise
    assert by_itself is not None and beside is not None
    assert (by_itself["inputs"], beside["inputs"]) == (16, 40)
    (folder / "3").rename(folder / "cat")
    with pytest.raises(ToastcError, match="2 class folders, and the model tells"):
        toastc.prune(path, target="drop=40", data=folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"target": "error=0.1"}, "give data of the model's own"),
        ({"target": "agree=0.999"}, "give 4000 inputs at least"),
        ({"target": "drop=1"}, "takes labels"),
        ({"target": "error=0.1", "search": 1.0}, "refines the widths of a budget"),
        ({"target": "macs=0.6", "labels": [1]}, "go with a target that asks for them"),
        ({"target": "error=0.1", "allow": "channels,tokens"}, "tokens go with a target in macs"),
    ],
)
def test_what_does_not_go_together(given: tuple[Path, np.ndarray], words: dict[str, object], said: str) -> None:
    path, data = given
    if "give data" not in said:
        words = words | {"data": data}
    with pytest.raises(ToastcError, match=said):
        toastc.prune(path, **words)
