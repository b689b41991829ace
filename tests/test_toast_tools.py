"""The tools about ToaSt: the leak shows on the project's own model, the schedules are ratio files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from toastc.ratios import parse

TOOLS = Path(__file__).resolve().parent.parent / "tools"


def tool(name: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / name), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_batches_of_one_class_hand_over_the_label(tmp_path: Path) -> None:
    """The same images, the same model: what changes is who sits beside whom."""
    out = tmp_path / "leak.json"
    done = tool("toast_leak.py", "digits", "--schedules", "2-5:0.9", "--batches", "16", "--shuffles", "2", "--out", out)
    assert done.returncode == 0, done.stderr
    rows = {row["company"]: row for row in json.loads(out.read_text())["rows"]}
    told = {company: [run["accuracy"] for run in row["runs"]] for company, row in rows.items() if "runs" in row}
    assert min(told["sorted by class"]) > max(told["shuffled"]) + 0.01
    assert rows["batches of one, same answer"]["share"] == 1.0
    assert abs(told["an image by itself"][0] - told["shuffled"][0]) < 0.03


def test_schedules_come_out_as_ratio_files() -> None:
    done = tool("toast_schedule.py", "deit_small_patch16_224", "2.7")
    ratios = parse(json.loads(done.stdout))
    assert ratios.round_to == 1
    assert ratios.attention["qk"][0] == 0  # type: ignore[index]
    assert ratios.attention["qk"][1] == 1 - 6 / 64  # type: ignore[index]
    listed = tool("toast_schedule.py", "--list").stdout.splitlines()
    assert len(listed) == 20


def test_unknown_models_and_points_are_one_line() -> None:
    for args in (("resnet50", "1"), ("deit_small_patch16_224", "9")):
        done = tool("toast_schedule.py", *args)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "there are" in done.stderr


def test_the_recipe_gives_what_the_table_says_and_is_proven() -> None:
    done = tool("toast_schedule.py", "--prove", "--models", "deit_tiny_patch16_224", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["proven"] and row["same"] and row["error"] <= row["tolerance"]
