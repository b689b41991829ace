"""A measurement that is stopped goes on where it was.

What has been summed so far is kept in a file beside the output, and taken up by the same measurement: one of the same model,
data, seed and options, by which the file is known. It is removed when the output is written. One process alone does this.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..system.errors import ToastcError
from .data import image_files
from .moments import Moments, read_moments

EVERY = 30.0  # seconds of work that may be lost
SHARE = 0.05  # of the time, at most, that goes into saving: the sums of large models are large
CHUNK = 1 << 24  # bytes


class Unfinished:
    """The sums of a measurement so far, and how many batches are in them."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.saved, self.took = time.monotonic(), 0.0
        self.trouble = ""  # why nothing more could be kept

    def found(self) -> tuple[Moments | None, int, str]:
        """What there is, of how many batches, and what there is to say about it."""
        if not self.path.is_file():
            return None, 0, ""
        try:
            moments, known = read_moments(self.path)
        except ToastcError:
            return None, 0, f"{self.path} is damaged; measuring from the beginning"
        if known.get("fingerprint") != self.fingerprint:
            return None, 0, f"{self.path} is of another model, other data or options; measuring from the beginning"
        return moments, known["batches"], f"{self.path}: {moments.images} inputs were measured before; going on from there"

    def offer(self, moments: Moments, batches: int) -> None:
        """Save, if it is time to."""
        if time.monotonic() - self.saved > max(EVERY, self.took / SHARE):
            self.save(moments, batches)

    def save(self, moments: Moments, batches: int) -> None:
        """As far as there is room: without it the measurement goes on all the same, and what was kept before stays."""
        start = time.monotonic()
        try:
            moments.save(self.path, {"fingerprint": self.fingerprint, "batches": batches})
        except ToastcError as error:
            self.trouble = f"{error}: if this is stopped, some of it is measured again"
        self.saved = time.monotonic()
        self.took = self.saved - start

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def fingerprint(model: Sequence[Path], data: Path, *options: object) -> str:
    """Of the bytes of the model and of arrays; of images, the names, sizes and times."""
    made = hashlib.blake2b(repr((__version__, options)).encode(), digest_size=16)
    try:
        for file in (*model, *([data] if data.is_file() else [])):
            with open(file, "rb") as stream:
                while chunk := stream.read(CHUNK):
                    made.update(chunk)
        for image in image_files(data) if data.is_dir() else ():
            stat = image.stat()
            made.update(repr((str(image.relative_to(data)), stat.st_size, stat.st_mtime_ns)).encode())
    except OSError as error:
        raise ToastcError(f"{error.filename}: can not be read ({error.strerror})") from None
    return made.hexdigest()
