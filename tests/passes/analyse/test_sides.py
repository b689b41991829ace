"""What is summed of each tap, and what is said where memory would not do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from drawn import batches

import toastc
from toastc.passes.analyse import sides
from toastc.plans.plan import Keep
from toastc.system.memory import free_memory


def test_a_quick_look_sums_ffn_channels_one_by_one(tiny: Path, tmp_path: Path) -> None:
    made = toastc.prune(tiny, target="macs=0.6", data=batches(), recipe="quick", output=tmp_path / "o.onnx")
    assert made.moments is not None
    shapes = {key: sums.scatter.shape for key, sums in made.moments.sums.items()}
    assert shapes["blocks.0.mlp.hidden/out"] == (64, 1, 1) and shapes["blocks.0.attn.vo/out"] == (1, 32, 32)
    hidden = made.plan.choices["blocks.0.mlp.hidden"]
    assert isinstance(hidden, Keep) and hidden.consumer is not None, "what stays makes up for what goes"
    assert made.report.verified is not None and made.report.verified["ok"]


def test_those_stay_that_vary_and_the_others_leave_their_mean(tiny: Path, tmp_path: Path) -> None:
    passes = "collect-moments{alone=true},analyse-losses,plan-losses"
    words = {"passes": passes.replace("plan-losses", "allocate-widths,plan-losses"), "target": "macs=0.8"}
    made = toastc.prune(tiny, data=batches(), output=tmp_path / "o.onnx", **words)
    worse = toastc.prune(tiny, data=batches(), target="macs=0.8", recipe="magnitude", output=tmp_path / "p.onnx")
    errors = [run.report.measured["error"] for run in (made, worse) if run.report.measured is not None]
    assert errors[0] < errors[1]


def test_the_command_knows_it(here: Command, tiny: Path, data_folder: Path, tmp_path: Path) -> None:
    asked = (tiny, "--target", "macs=0.6", "--calibrate", data_folder / "data.npy", "--quiet", "-o")
    assert here(*asked, tmp_path / "a.onnx", "--quick").returncode == 0
    assert here(*asked, tmp_path / "b.onnx", "--recipe", "quick").returncode == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_too_little_memory_is_said_before_anything_runs(
    here: Command, tiny: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (tiny, "--target", "macs=0.6", "--calibrate", data_folder / "data.npy", "--quiet", "-o", tmp_path / "o.onnx")
    sizes: dict[str, int] = {}

    def noted(state: object, own: sides.Sides, seen: float) -> int:
        sizes[str(len(sizes))] = size = room(state, own, seen)  # type: ignore[arg-type]
        return size

    room = sides.room
    monkeypatch.setattr(sides, "room", noted)
    monkeypatch.setattr(sides, "free_memory", lambda: 1 << 16)
    made = here(*asked)
    assert made.returncode == 2 and not (tmp_path / "o.onnx").exists()
    whole, quick = sizes["0"], sizes["1"]
    assert quick < whole < 1e9
    assert made.stderr == (
        f"toastc: memory: this run needs about {whole / 1e6:.0f} MB, and 0 MB are free; "
        "--recipe magnitude needs little beside the model\n"
    )
    monkeypatch.setattr(sides, "free_memory", lambda: (quick + whole) // 2)
    assert f"; --quick needs about {quick / 1e6:.0f} MB\n" in here(*asked).stderr
    assert here(*asked, "--quick").returncode == 0


def test_what_is_free_is_known_here() -> None:
    free = free_memory()
    assert free is not None and 1 << 20 < free < 1 << 50


def test_an_address_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda what: (1 << 20, 1 << 20))
    assert np.sign(free_memory() or 0) == -1, "more is taken already than that"
