"""No room: on the disk, for one file, in the folder, in memory. Every command has to say so in one line, and leave nothing."""

from __future__ import annotations

import ctypes
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from . import Row, found_in, workplace, wrong
from .runs import ran, wide_model

MEMORY = (300, 400, 500, 600, 700, 800, 1000, 1500)  # MB of addresses; a compile that succeeds takes about one GB
FILES = (0, 1000, 20_000, 1_000_000, 4_000_000)  # bytes of the largest file that may be written
ASKED_FOR = ("o.onnx", "p", "out.safetensors.part")  # may be there, whole: others could not be written, or it may go on later
DISKS = (0, 16, 1024, 4096)  # KB
DROP_CAPABILITY, OVERRIDE_PERMISSIONS = 24, 1  # of Linux: PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


def limited(what: int, size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(what, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def obedient() -> None:
    """Root may write everywhere; a process that has dropped that capability before it begins may not."""
    ctypes.CDLL(None).prctl(DROP_CAPABILITY, OVERRIDE_PERMISSIONS, 0, 0, 0)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """Mount a disk of that size there, if we may; is it there?"""
    folder.mkdir()
    size = f"size={max(kilobytes, 4)}k"
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True, check=False)
    try:
        if kilobytes == 0 and made.returncode == 0:
            (folder / "full").write_bytes(bytes(4096))
        yield made.returncode == 0
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True)


def run(say: bool = True) -> Row:
    row: Row = {"cases": 0, "refused": 0, "done": 0, "skipped": 0, "bad": 0}

    def check(what: str, args: list[str], out: Path, before: Callable[[], None] | None = None) -> None:
        here = found_in(out.parent)
        end = ran(args, before)
        why = wrong(end.status, end.said, end.seconds)
        left = {name for name in set(found_in(out.parent)) - set(here) if name.startswith(".") or name not in ASKED_FOR}
        if not why and end.status and left:
            why = f"left behind: {sorted(left)}"
        if not why and found_in(temporary):
            why = f"left in the folder for temporary files: {sorted(found_in(temporary))}"
        row["cases"] += 1
        row["bad" if why else "done" if end.status == 0 else "refused"] += 1
        if say:
            print(f"  {what}: {why or end.said.strip() or 'done'}", flush=True)
        for path in out.parent.iterdir():
            if path.name not in here:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in temporary.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    with workplace() as folder:
        temporary = folder / "temp"
        import models
        import numpy as np

        inputs = folder / "work" / "in"
        inputs.mkdir()
        given = wide_model(inputs)
        np.save(inputs / "data.npy", np.random.default_rng(0).standard_normal((200, 3, 16, 16)).astype(np.float32))
        outside = models.save_external(models.vit(), inputs / "outside.onnx")
        place = folder / "work" / "out"
        place.mkdir()
        commands = {
            "compile": [*given, "-o", str(place / "out.onnx")],
            "compile, weights outside": [str(outside), *given[1:], "-o", str(place / "out.onnx")],
            "by-products": [
                *given,
                "-o",
                str(place / "o.onnx"),
                "--report",
                str(place / "r.html"),
                "--plan-out",
                str(place / "p"),
            ],
            "calibrate": ["calibrate", given[0], str(inputs / "data.npy"), "-o", str(place / "out.safetensors"), "--quiet"],
        }
        for what, args in commands.items():
            for size in FILES:
                check(f"{what}, files of {size} bytes", args, place / "x", partial(limited, resource.RLIMIT_FSIZE, size))
            for size in MEMORY:
                check(f"{what}, {size} MB of memory", args, place / "x", partial(limited, resource.RLIMIT_AS, size << 20))
        for at, (what, args) in enumerate(commands.items()):
            for number, size in enumerate(DISKS):
                disk = folder / "work" / f"disk{at}-{number}"
                with small_disk(disk, size) as there:
                    if there:
                        check(f"{what}, a disk of {size} KB", [a.replace(str(place), str(disk)) for a in args], disk / "x")
                    else:
                        row["skipped"] += 1
            file = folder / "work" / "file"
            file.write_text("")
            check(f"{what}, into a file", [a.replace(str(place), str(file)) for a in args], place / "x")
            place.chmod(0o500)
            check(f"{what}, a read-only folder", args, place / "x", obedient)
            place.chmod(0o700)
    return row
