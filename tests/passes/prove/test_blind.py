"""A proof that can not see what was cut says so."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest
import torch
from conftest import RATIOS
from small import vit_of_transformers

import toastc
from toastc import api
from toastc.passes.prove import Verification

SAYS = "this proof says little"


def notes(result: toastc.Result) -> list[str]:
    return [n for n in result.report.notes if SAYS in n]


def test_a_head_of_zeros_in_a_file(tmp_path: Path) -> None:
    dense = models.weights() | {"head.weight": np.zeros((models.DIM, models.CLASSES), np.float32)}
    blind = models.save(models.vit(dense=dense), tmp_path / "blind.onnx")
    result = toastc.prune(blind, RATIOS, recipe="magnitude", output=tmp_path / "o.onnx")
    assert result.report.verified is not None and result.report.verified["ok"]
    assert len(notes(result)) == 1 and SAYS in api.verify(blind, tmp_path / "o.onnx")["note"]


def test_a_file_whose_outputs_tell(tiny: Path, tmp_path: Path) -> None:
    result = toastc.prune(tiny, RATIOS, recipe="magnitude", output=tmp_path / "o.onnx")
    assert notes(result) == [] and result.report.verified is not None and result.report.verified["note"] == ""


@pytest.mark.parametrize("blind", [True, False])
def test_blocks_that_hardly_count_in_a_module(blind: bool) -> None:
    model = vit_of_transformers(num_labels=4)
    if blind:
        torch.nn.init.zeros_(model.classifier.weight)
    assert len(notes(toastc.prune(model, RATIOS, recipe="magnitude", example_inputs=(torch.randn(2, 3, 32, 32),)))) == blind


def test_a_proof_of_nothing_is_no_wrong_one() -> None:
    assert Verification.of(0.0, 1e-4, 2, 3, 1e-6).ok and Verification.of(0.0, 1e-4, 2, 3, 1e-6).note.startswith(SAYS)
    assert Verification.of(0.0, 1e-4, 2, 3, 0.5).note == ""
    assert not Verification.of(1.0, 1e-4, 2, 3, 1e-6).ok
