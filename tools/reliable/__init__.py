"""What the reliability checks share: what counts as bad, a place to work in, and figures that are merged into one file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests")]  # for models.py, the tiny ViT

RATIOS: dict[str, Any] = {"attention": {"qk": 0.5, "vo": 0.25}, "ffn": 0.5, "round_to": 4}
QUICK = ("--recipe", "magnitude", "--quiet")
SLOW = 60.0  # seconds after which a tiny model counts as hanging
OWN_FAULT = ("Traceback", "a bug of toastc", "PassFailed", "Exception ignored")
Row = dict[str, Any]


def wrong(status: int | None, said: str, seconds: float = 0.0) -> str:
    """Why an ending is bad, or nothing: done in silence, or one line that says what is wrong."""
    lines = said.splitlines()
    if seconds > SLOW:
        return f"took {seconds:.0f} s"
    if status is None or status < 0:
        return "hang" if status is None else f"killed by signal {-status}"
    if any(word in said for word in OWN_FAULT):
        return f"its own fault: {lines[-1][:300]}"
    if status not in (0, 1, 2):
        return f"exit status {status}"
    if status == 0:
        return f"done, and said: {lines[0][:200]}" if lines else ""
    if len(lines) != 1 or not said.startswith("toastc: "):
        return f"{len(lines)} lines of error: {' | '.join(lines)[:300]}"
    return ""


def found_in(folder: Path) -> dict[str, Any]:
    """Every name below a folder, with the bytes of files and the goals of links."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        if path.name == ".ses":  # ONNX Runtime's own, in the folder for temporary files
            continue
        what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = what
    return found


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder with `work` and `temp` in it; the latter is the folder for temporary files of this process and its children."""
    before, environment = tempfile.tempdir, os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="reliability-") as name:
        folder = Path(name)
        (folder / "work").mkdir()
        (folder / "temp").mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "temp")
        try:
            yield folder
        finally:
            tempfile.tempdir = before
            os.environ.pop("TMPDIR")
            if environment is not None:
                os.environ["TMPDIR"] = environment


def progress(what: str, done: int, count: int, bad: int) -> None:
    """A line every few seconds, on stderr."""
    now = time.monotonic()
    if done == count or now - progress.said > 10:  # type: ignore[attr-defined]
        print(f"{what}: {done} of {count}, {bad} bad", file=sys.stderr, flush=True)
        progress.said = now  # type: ignore[attr-defined]


progress.said = 0.0  # type: ignore[attr-defined]


def merge(name: str, row: Row, file: Path) -> None:
    """Put a row of figures into the file, beside those of the other checks."""
    rows = json.loads(file.read_text()) if file.exists() else {}
    rows[name] = row | {"date": date.today().isoformat(), "cpus": len(os.sched_getaffinity(0))}
    file.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
