"""A calibration that was stopped goes on where it was, and ends in the very bytes of one that nobody stopped."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import models
import numpy as np
import pytest
from conftest import Command
from reliable.limits import limited

from toastc.calibration import resume as unfinished
from toastc.calibration.moments import Moments, read_moments

SLOWLY = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start what runs in the background without
from toastc.calibration import data, resume
from toastc.cli import main
resume.EVERY, resume.SHARE = 0.0, 1.0
checked = data.Batches._checked
data.Batches._checked = lambda self, batches: (time.sleep(0.05) or batch for batch in checked(self, batches))
sys.exit(main(sys.argv[1:]))
"""  # the command, with batches that take their time, saved after each


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    """Arguments of a calibration of thirty batches."""
    models.save(models.vit(), tmp_path / "model.onnx")
    np.save(tmp_path / "data.npy", np.random.default_rng(0).standard_normal((950, 3, 16, 16)).astype(np.float32))
    return ["calibrate", str(tmp_path / "model.onnx"), str(tmp_path / "data.npy"), "-o", str(tmp_path / "m.safetensors")]


def stopped(asked: list[str], number: int, after: int) -> subprocess.CompletedProcess[str]:
    """Start it, and send the signal when so many inputs are in the part."""
    part = Path(f"{asked[-1]}.part")
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, *asked], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        if part.exists() and Moments.load(part).images >= after:
            process.send_signal(number)
            break
        time.sleep(0.005)
    said = process.communicate(timeout=60)[1]
    assert process.returncode in (-number, 130), said
    return subprocess.CompletedProcess(asked, process.returncode, "", said)


@pytest.fixture
def whole(asked: list[str], here: Command) -> bytes:
    assert here(*asked, "--quiet").returncode == 0
    data = Path(asked[-1]).read_bytes()
    Path(asked[-1]).unlink()
    return data


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_a_stopped_calibration_goes_on_where_it_was(asked: list[str], here: Command, whole: bytes, number: int) -> None:
    out, part = Path(asked[-1]), Path(f"{asked[-1]}.part")
    for after in (64, 320):  # it may be stopped again
        said = stopped(asked, number, after).stderr
        assert not out.exists() and part.exists()
        assert "Traceback" not in said, said
    before = Moments.load(part).images
    made = here(*asked, "--json")
    assert made.returncode == 0, made.stderr
    assert f"{before} inputs were measured before; going on from there" in made.stderr
    assert any("were measured before" in note for note in json.loads(made.stdout)["notes"])
    assert out.read_bytes() == whole
    left = {path.name for path in out.parent.iterdir() if not path.name.startswith(".")}
    assert left == {"model.onnx", "data.npy", "m.safetensors"}


def test_what_was_measured_is_not_measured_again(asked: list[str], here: Command) -> None:
    """Whatever the part says is believed: sums that were tampered with arrive in the file, and no input is counted twice."""
    stopped(asked, signal.SIGINT, 320)
    moments, known = read_moments(Path(f"{asked[-1]}.part"))
    key = next(iter(moments))
    moments[key].absolute[:] += 1e6
    moments.save(Path(f"{asked[-1]}.part"), known)
    assert here(*asked, "--quiet").returncode == 0
    made = Moments.load(Path(asked[-1]))
    assert made.images == 950
    assert made[key].absolute.min() > 1e6


def test_the_part_is_never_an_input(asked: list[str], here: Command, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").rename(tmp_path / "m.safetensors.part")
    made = here("calibrate", tmp_path / "m.safetensors.part", *asked[2:], "--quiet")
    assert made.returncode == 2 and "would overwrite the input" in made.stderr


@pytest.mark.parametrize("other", ["model", "data", "seed", "images", "size", "nothing"])
def test_the_part_of_another_calibration_is_not_taken(asked: list[str], here: Command, tmp_path: Path, other: str) -> None:
    """And the file comes out as if no part had been there."""
    stopped(asked, signal.SIGKILL, 64)
    data = np.load(tmp_path / "data.npy")
    if other == "model":
        models.save(models.vit(dense=models.weights(seed=1)), tmp_path / "model.onnx")
    elif other == "data":
        data[0] += 1
        np.save(tmp_path / "data.npy", data)
    more = {"seed": ["--seed", "1"], "images": ["--images", "640"], "size": ["--size", "16"]}.get(other, [])
    made = here(*asked, *more)
    assert made.returncode == 0, made.stderr
    assert ("is of another model, other data or options; measuring from the beginning" in made.stderr) == (other != "nothing")
    made_with = Path(asked[-1]).read_bytes()
    assert here(*asked, *more, "--quiet").returncode == 0
    assert Path(asked[-1]).read_bytes() == made_with


def test_a_full_disk_loses_nothing_that_was_measured(asked: list[str], toastc: Command, here: Command, whole: bytes) -> None:
    stopped(asked, signal.SIGKILL, 64)
    part = Path(f"{asked[-1]}.part")
    before = part.read_bytes()
    made = toastc(*asked, "--quiet", preexec_fn=partial(limited, resource.RLIMIT_FSIZE, 1000))
    assert made.returncode == 2 and "m.safetensors: can not be written" in made.stderr
    assert part.read_bytes() == before
    made = here(*asked)
    assert made.returncode == 0 and "were measured before; going on from there" in made.stderr
    assert Path(asked[-1]).read_bytes() == whole


@pytest.mark.parametrize("text", [b"", b"junk", b"\xff" * 100])
def test_a_damaged_part_is_not_taken(asked: list[str], here: Command, whole: bytes, text: bytes) -> None:
    part = Path(f"{asked[-1]}.part")
    part.write_bytes(text)
    made = here(*asked)
    assert made.returncode == 0, made.stderr
    assert "is damaged; measuring from the beginning" in made.stderr
    assert Path(asked[-1]).read_bytes() == whole and not part.exists()


def test_changed_images_are_other_data(tmp_path: Path) -> None:
    model = models.save(models.vit(), tmp_path / "model.onnx")
    folder = models.photos(tmp_path / "photos", 1)
    before = unfinished.fingerprint([model], folder, 0)
    assert unfinished.fingerprint([model], folder, 0) == before
    models.photos(folder, 1, seed=1)
    os.utime(folder / "0.png", ns=(1, 1))
    assert unfinished.fingerprint([model], folder, 0) != before


def test_saving_takes_a_small_share_of_the_time(tmp_path: Path) -> None:
    """The sums of a large model are large: they are saved as seldom as that takes."""
    kept = unfinished.Unfinished(tmp_path / "m.part", "x")
    kept.offer(Moments(), 1)
    assert not kept.path.exists(), "thirty seconds have not gone by"
    kept.saved -= 31
    kept.offer(Moments(), 1)
    assert kept.path.exists()
    kept.path.unlink()
    kept.took, kept.saved = 10.0, kept.saved - 31
    kept.offer(Moments(), 2)
    assert not kept.path.exists(), "ten seconds of saving want two hundred of measuring"
