"""A little of everything that tools/reliability.py does at length (docs/reliability.md): damage, kills, limits, hostile files."""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from conftest import PLAIN, Command, unwatched
from PIL import Image
from reliable import found_in, fuzz, hostile, images, kill, mutate_onnx, mutate_ratios, races, repeat, threads, wrong
from reliable.limits import limited

TOOL = Path(__file__).resolve().parents[2] / "tools" / "reliability.py"


def checked(name: str, *options: object) -> dict[str, Any]:
    """The row of a check that tools/reliability.py ran in a process of its own, and found nothing bad."""
    command = [sys.executable, TOOL, name, "--json", *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    row: dict[str, Any] = json.loads(done.stdout)[name]
    return row


# ---- what the checks call bad ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "said", "seconds"),
    [
        (None, "", 1.0),
        (-11, "", 1.0),
        (3, "toastc: x\n", 1.0),
        (2, "", 1.0),
        (2, "toastc: x\ntoastc: y\n", 1.0),
        (2, "x\n", 1.0),
        (2, "toastc: a bug of toastc, please report it: ValueError\n", 1.0),
        (2, "toastc: PassFailed: pass shrink failed\n", 1.0),
        (1, "Traceback (most recent call last):\n", 1.0),
        (0, "a warning\n", 1.0),
        (0, "", 61.0),
    ],
)
def test_bad_endings_are_seen(status: int | None, said: str, seconds: float) -> None:
    assert wrong(status, said, seconds)
    assert not wrong(0, "") and not wrong(1, "toastc: nothing\n") and not wrong(2, "toastc: what is wrong\n")


def test_a_crash_and_a_hang_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one who watches the workers counts what they can not tell any more, and goes on."""

    def tried(number: int, *given: object) -> fuzz.Outcome:
        if number == 1:
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 2:
            signal.pause()
        return fuzz.Outcome(number, "", 0, "", 0.0)

    monkeypatch.setattr(fuzz, "tried", tried)
    monkeypatch.setattr(fuzz, "SLOW", 2.0)
    row, bad = fuzz.run(5, say=False)
    assert [(one.number, one.bad) for one in bad] == [(1, "killed by signal 11"), (2, "hang")]
    assert row["ends"] == {"bad": 2, "exit 0": 3}


def test_damage_is_the_same_for_a_seed_and_of_every_kind() -> None:
    data = models.vit().SerializeToString()
    made = [mutate_onnx.mutated(random.Random(n), data) for n in range(400)]
    assert made[:20] == [mutate_onnx.mutated(random.Random(n), data) for n in range(20)]
    kinds = {name for names, _ in made for name in names.split("+")}
    assert kinds >= {edit.__name__ for edit in mutate_onnx.EDITS} | {change.__name__ for change in mutate_onnx.BYTES}
    assert sum(after != data for _, after in made) > 390
    assert len({mutate_ratios.mutated(random.Random(n)) for n in range(100)}) > 80


# ---- fuzzing, kills, hostile files ----------------------------------------------------------------------------


def test_damaged_files_end_well(tmp_path: Path) -> None:
    """From a process that has loaded nothing else: its workers are forked, and libraries with threads do not survive that."""
    row = checked("fuzz", "--count", "100", "--seed", "7", "--out", tmp_path / "rows.json")
    assert row["ends"]["exit 0"] > 8 and row["ends"]["exit 2"] > 40, "the damage does nothing, or too much"


IMPORTED = """Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "{root}/toastc/__main__.py", line 3, in <module>
    raise SystemExit(main())
  File "{root}/toastc/cli.py", line 22, in main
    args = parser_for(command).parse_args(given)
  File "/usr/lib/python3.11/re/_compiler.py", line 379, in _optimize_charset
    charmap = bytearray(256)
{error}
"""
LAZILY = '  File "{root}/passes/verify.py", line 3, in verify\n    from .x import y\n'
WORKING = IMPORTED.replace('  File "/usr', f'{LAZILY}  File "/usr')


def test_only_who_did_not_begin_may_leave_a_trace() -> None:
    """Ctrl-C while Python starts is nobody's fault; any other trace is bad, through an import as well."""
    assert kill.before_it_began(IMPORTED.format(root=kill.ROOT, error="KeyboardInterrupt"))
    assert not kill.before_it_began(IMPORTED.format(root=kill.ROOT, error="ImportError: no"))
    assert not kill.before_it_began(WORKING.format(root=kill.ROOT, error="KeyboardInterrupt"))
    assert not kill.before_it_began("Segmentation fault")


def test_kills_leave_nothing_by_halves() -> None:
    row = kill.run(3, seed=1, say=False)
    assert row["bad"] == 0 and sum(row["ends"].values()) == 3, row


HOSTILE = (
    "'null'",
    "'pipe'",
    "sparse",
    "5000 deep",
    "script",
    "objects as x.npy",
    "pickle as the model",
    "1099511627776 images",
)


def test_hostile_files_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [case for case in hostile.cases() if any(word in case[0] for word in HOSTILE)]
    assert len(some) == len(HOSTILE)
    monkeypatch.setattr(hostile, "cases", lambda: some)
    row = hostile.run(say=False)
    assert row["bad"] == 0 and row["refused"] >= 6, row


# ---- limits ----------------------------------------------------------------------------------------------------


@pytest.fixture
def calibration(tmp_path: Path) -> list[object]:
    models.save(models.vit(), tmp_path / "model.onnx")
    np.save(tmp_path / "data.npy", np.zeros((8, 3, 16, 16), np.float32))
    return ["calibrate", tmp_path / "model.onnx", tmp_path / "data.npy", "-o", tmp_path / "m.safetensors", "--quiet"]


@pytest.mark.parametrize("size", [0, 1000, 20_000])
def test_no_room_for_what_was_measured(toastc: Command, calibration: list[object], tmp_path: Path, temp: Path, size: int) -> None:
    before = found_in(tmp_path)
    made = toastc(*calibration, preexec_fn=partial(limited, resource.RLIMIT_FSIZE, size), env=unwatched())
    assert made.returncode == 2 and len(made.stderr.splitlines()) == 1, made.stderr
    assert "can not be written" in made.stderr
    assert found_in(tmp_path) == before and found_in(temp) == {}


def test_no_room_for_temporary_files(toastc: Command, tiny: Path, ratio_file: Path, tmp_path: Path) -> None:
    """Every folder Python would try is full."""
    args = [tiny, "-o", tmp_path / "out.onnx", "--ratios", ratio_file, *PLAIN, "--quiet"]
    made = toastc(*args, preexec_fn=partial(limited, resource.RLIMIT_FSIZE, 0), env=unwatched())
    assert made.returncode == 2
    assert "no folder for temporary files can be written to; set TMPDIR" in made.stderr and len(made.stderr.splitlines()) == 1
    assert found_in(tmp_path) == {}


def test_a_model_too_large_for_the_memory(toastc: Command, tmp_path: Path) -> None:
    path = hostile.large_input(tmp_path, 2**31)
    made = toastc("inspect", path, preexec_fn=partial(limited, resource.RLIMIT_AS, 4 << 30))
    assert made.returncode == 2 and len(made.stderr.splitlines()) == 1
    assert "not enough memory: MemoryError: Unable to allocate" in made.stderr


@pytest.mark.parametrize("megabytes", [250, 300, 350, 400, 450])
def test_libraries_that_end_the_process_are_not_started_without_memory(
    toastc: Command, calibration: list[object], tmp_path: Path, megabytes: int
) -> None:
    """OpenBLAS and ONNX Runtime's threads would say a line of their own, or nothing."""
    before = found_in(tmp_path)
    made = toastc(*calibration, preexec_fn=partial(limited, resource.RLIMIT_AS, megabytes << 20), env=unwatched())
    if made.returncode:  # how much it takes is not the same everywhere
        assert made.returncode == 2 and len(made.stderr.splitlines()) == 1, made.stderr
        assert "toastc: not enough memory: " in made.stderr
        assert found_in(tmp_path) == before
    assert made.returncode or megabytes > 250


# ---- two at once, data that changes, photos of every kind --------------------------------------------------------


@pytest.mark.parametrize("race", races.RACES)
def test_races_end_well(race: str) -> None:
    """Two processes write one output; a folder changes while it is read."""
    assert races.run(1, say=False, names=[race]) == {race: 1, "seed": 0, "bad": 0}


def test_photos_of_every_size_and_mode() -> None:
    row = images.run(200, say=False)
    assert row["bad"] == 0, row
    assert row["sound"] > 100 and row["measured"] >= row["sound"] and row["note"]


def test_a_warning_of_a_library_is_not_heard(toastc: Command, tmp_path: Path) -> None:
    """Pillow warns of images of a hundred million pixels, and takes them."""
    models.save(models.vit(), tmp_path / "model.onnx")
    (tmp_path / "photos").mkdir()
    Image.new("1", (10_000, 10_000)).save(tmp_path / "photos" / "large.png")
    made = toastc("calibrate", tmp_path / "model.onnx", tmp_path / "photos", "-o", tmp_path / "m", "--quiet")
    assert (made.returncode, made.stderr) == (0, "")


def test_what_a_library_logs_is_not_heard(toastc: Command, tmp_path: Path) -> None:
    """Of a TIFF that says it had 2048 samples a pixel, Pillow tells the log before it refuses it."""
    models.save(models.vit(), tmp_path / "model.onnx")
    file = models.photos(tmp_path / "photos", 3, ending="tif") / "0.tif"
    samples = b"\x15\x01\x03\x00\x01\x00\x00\x00"  # tag 277, one short number
    assert samples + b"\x03\x00" in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(samples + b"\x03\x00", samples + b"\x00\x08"))
    made = toastc("calibrate", tmp_path / "model.onnx", tmp_path / "photos", "-o", tmp_path / "m", "--json", "--quiet")
    assert (made.returncode, made.stderr) == (0, "")
    assert "1 of 3 images could not be read" in made.stdout


# ---- again and again ------------------------------------------------------------------------------------------


def test_the_same_bytes_again_and_the_same_plan_on_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    every = repeat.commands
    monkeypatch.setattr(repeat, "commands", lambda *folders: {n: every(*folders)[n] for n in ("calibrated", "fused", "moments")})
    row = repeat.run(2, say=False)
    assert row["bad"] == 0 and row["commands"] == 3, row


def test_memory_stays_what_it_was(tmp_path: Path) -> None:
    """In a process of its own: memory that other tests left behind comes and goes. The first 30 fill the allocator's pools."""
    checked("soak", "--count", "50", "--out", tmp_path / "rows.json")


def test_threads_compile_at_once() -> None:
    assert threads.run(1, say=False)["bad"] == 0


def test_figures_are_merged_into_one_file(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"soak": {"bad": 0}}')
    row = checked("fuzz", "--count", "3", "--out", tmp_path / "r.json")
    assert row["cases"] == 3 and set(json.loads((tmp_path / "r.json").read_text())) == {"soak", "fuzz"}
