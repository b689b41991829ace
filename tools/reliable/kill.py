"""Compiles and calibrations that are stopped at a random moment: the input is untouched, the output absent or whole.

Half of them are killed outright, the others get the signal of Ctrl-C, and those have to tidy up behind them. A calibration that
was stopped is asked for again, and has to end in the bytes of one that nobody stopped.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from . import ROOT, Row, found_in, progress, workplace
from .runs import End, ended, ran, runs, started, wide_model

INPUTS = 8000  # of the calibration: a second or so of measuring
FRAME = re.compile(r'^  File "(.*?)", line \d+, in (\S+)', re.M)


def stop(args: list[str], seconds: float, number: int) -> End:
    since = time.perf_counter()
    process = started(args)
    time.sleep(seconds)
    process.send_signal(number)
    return ended(process, since)


def before_it_began(said: str) -> bool:
    """Is it a trace of Ctrl-C while Python was starting or the arguments were read? Later on the command has to catch it."""
    frames = [(Path(file), function) for file, function in FRAME.findall(said)]
    own = [frame for frame in frames if ROOT in frame[0].parents]
    early = all(function in ("<module>", "main") or file.name == "arguments.py" for file, function in own)
    return bool(frames) and early and said.rstrip().endswith("KeyboardInterrupt")


def ill(end: End, number: int) -> str:
    """What is wrong with how it ended: it may have been done already, or was interrupted. Python ends itself by the signal where
    that came while it was tidying up, or into code that a library makes from text; shells say 130 of both.
    """
    fine = {signal.SIGKILL: (0, -number), signal.SIGINT: (0, 130, -number)}[signal.Signals(number)]
    if before_it_began(end.said) or (
        end.status in fine and not any(word in end.said for word in ("Traceback", "Exception ignored"))
    ):
        return ""
    return f"status {end.status}: {end.said[-300:]}"


def compiled(number: int, at: float, given: list[str], whole: float, folder: Path) -> tuple[str, str]:
    """How one that was stopped ended, and what is wrong with it."""
    out = folder / "out" / "out.onnx"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    before = found_in(Path(given[0]).parent)
    end = stop([*given, "-o", str(out)], at * whole, number)
    left, there = set(found_in(out.parent)), out.exists()
    if found_in(Path(given[0]).parent) != before:
        return "bad", "the input was changed"
    if there and not runs(out):
        return "bad", "the output is no whole model"
    if number == signal.SIGINT and (left - {"out.onnx"} or found_in(Path(tempfile.gettempdir()))):
        return "bad", f"left behind: {left} {set(found_in(Path(tempfile.gettempdir())))}"
    if why := ill(end, number):
        return "bad", why
    return ("whole" if there else "absent"), ""


def calibrated(number: int, at: float, given: list[str], whole: float, wanted: bytes) -> tuple[str, str]:
    out, part = Path(given[-2]), Path(f"{given[-2]}.part")
    for path in (out, part, *out.parent.glob(f".{out.name}.*")):  # the last are what SIGKILL left behind
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    end = stop(given, at * whole, number)
    if why := ill(end, number):
        return "bad", why
    if out.exists():
        return ("whole", "") if out.read_bytes() == wanted else ("bad", "the file is no whole one")
    if number == signal.SIGINT and {p.name for p in out.parent.iterdir()} - {"model.onnx", "data.npy", part.name}:
        return "bad", f"left behind: {sorted(p.name for p in out.parent.iterdir())}"
    resumed = part.exists()
    again = ran(given)
    if again.status != 0 or out.read_bytes() != wanted or part.exists():
        return "bad", f"asked again after {end.status}: {again.status} {again.said[-300:]}"
    return ("resumed" if resumed else "begun again"), ""


def run(count: int, seed: int = 0, say: bool = True) -> Row:
    import models
    import numpy as np

    rng, ends, bad = random.Random(seed), Counter[str](), 0
    with workplace() as folder:
        inputs, moments = folder / "work" / "in", folder / "work" / "moments"
        for path in (inputs, moments):
            path.mkdir()
        given = wide_model(inputs)
        models.save(models.vit(), moments / "model.onnx")
        np.save(moments / "data.npy", np.random.default_rng(0).standard_normal((INPUTS, 3, 16, 16)).astype(np.float32))
        out = moments / "m.safetensors"
        calibration = ["calibrate", str(moments / "model.onnx"), str(moments / "data.npy"), "-o", str(out), "--quiet"]
        first = ran([*given, "-o", str(folder / "work" / "out.onnx")])
        second = ran(calibration)
        assert first.status == second.status == 0, first.said + second.said
        wanted = out.read_bytes()
        for done in range(1, count + 1):
            number, at = rng.choice((signal.SIGKILL, signal.SIGINT)), rng.random()
            if done % 2:
                how, why = compiled(number, at, given, first.seconds, folder / "work")
                how = f"compile {how}"
            else:
                how, why = calibrated(number, at, calibration, second.seconds, wanted)
                how = f"calibration {how}"
            ends[how] += 1
            bad += bool(why)
            if why:
                print(f"  {signal.Signals(number).name} at {at:.2f}: {how}, {why}", flush=True)
            for path in (folder / "temp").iterdir():  # what SIGKILL leaves behind is nobody's fault
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if say:
                progress("kill", done, count, bad)
    return {"kills": count, "seed": seed, "ends": dict(sorted(ends.items())), "bad": bad}
