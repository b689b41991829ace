"""Widths moved where the measured error falls, judged on what was not measured."""

from __future__ import annotations

import re
from pathlib import Path

import models
import numpy as np
import pytest
from drawn import batches

import toastc
from toastc.system.errors import ToastcError


def test_a_search_never_makes_the_measured_error_worse(data_folder: Path) -> None:
    path = models.save(models.vit(), data_folder / "model.onnx")
    np.save(data_folder / "more.npy", batches(256))
    result = toastc.prune(path, target="macs=0.75", data=data_folder / "more.npy", search=0.2)
    note = next(n for n in result.report.notes if n.startswith("search:"))
    before, after = (float(x) for x in re.findall(r"\d+\.\d+", note))
    assert after <= before
    assert "128 held-out" in note
    assert result.report.after.macs <= 0.75 * result.report.before.macs
    assert result.moments is not None
    assert result.moments.images == 128
    with pytest.raises(ToastcError, match="search"):
        toastc.prune(path, target="macs=0.75", recipe="magnitude", search=1.0)
    with pytest.raises(ToastcError, match="one input is too few"):
        toastc.prune(path, target="macs=0.75", data=data_folder / "more.npy", images=1, search=1.0)


def test_a_search_that_is_spelled_out_holds_images_back_too(data_folder: Path) -> None:
    path = models.save(models.vit(), data_folder / "model.onnx")
    np.save(data_folder / "more.npy", batches(256))
    spelled = "collect-moments,analyse-losses,measure-gains,allocate-widths,search-widths{minutes=0.1},plan-losses"
    result = toastc.prune(path, target="macs=0.75", data=data_folder / "more.npy", passes=spelled)
    assert result.moments is not None
    assert result.moments.images == 128
    assert any(note.startswith("search:") and "128 held-out" in note for note in result.report.notes)
