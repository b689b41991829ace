"""The tools about ToaSt: the leak shows on the project's own model, the schedules are ratio files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toast_leak
import toast_schedule

from toastc.plans.ratios import parse


def test_batches_of_one_class_hand_over_the_label(tmp_path: Path) -> None:
    """The same images, the same model: what changes is who sits beside whom."""
    out = tmp_path / "leak.json"
    given = ["digits", "--schedules", "2-5:0.9", "--batches", "16", "--shuffles", "2", "--out", str(out)]
    assert toast_leak.main(given) == 0
    rows = {row["company"]: row for row in json.loads(out.read_text())["rows"]}
    told = {company: [run["accuracy"] for run in row["runs"]] for company, row in rows.items() if "runs" in row}
    assert min(told["sorted by class"]) > max(told["shuffled"]) + 0.01
    assert rows["batches of one, same answer"]["share"] == 1.0
    assert abs(told["an image by itself"][0] - told["shuffled"][0]) < 0.03


def test_schedules_come_out_as_ratio_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert toast_schedule.main(["deit_small_patch16_224", "2.7"]) == 0
    ratios = parse(json.loads(capsys.readouterr().out))
    assert ratios.round_to == 1
    assert ratios.attention["qk"][0] == 0  # type: ignore[index]
    assert ratios.attention["qk"][1] == 1 - 6 / 64  # type: ignore[index]
    assert toast_schedule.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 20


def test_unknown_models_and_points_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["resnet50", "1"], ["deit_small_patch16_224", "9"]):
        assert toast_schedule.main(args) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "there are" in said


def test_the_recipe_gives_what_the_table_says_and_is_proven(capsys: pytest.CaptureFixture[str]) -> None:
    assert toast_schedule.main(["--prove", "--models", "deit_tiny_patch16_224", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["proven"] and row["same"] and row["error"] <= row["tolerance"]
