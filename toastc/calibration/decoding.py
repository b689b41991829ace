"""Images decoded by threads while the model runs, and the first of them kept, so that they are not decoded for every pass."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .images import Preprocess

AHEAD = 3  # batches decoded in advance
DECODED = 64 << 20  # bytes of pixels that are kept

Decoded = tuple[Path, np.ndarray]


class Decoder:
    """Goes through groups of files, the same ones every time. `failed`: those that could not be read, the last time."""

    def __init__(self) -> None:
        self.kept: list[list[Decoded]] = []  # of the first groups
        self.failed: list[str] = []

    def __call__(self, groups: Iterable[list[Path]], prepare: Preprocess) -> Iterator[list[Decoded]]:
        self.failed = failed = []

        def decode(path: Path) -> Decoded | None:
            try:
                return path, prepare.pixels(path)
            except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on damaged files
                failed.append(f"{path.name} ({' '.join(str(error).split())[:60]})")
                return None

        yield from filter(None, self.kept)
        with contextlib.ExitStack() as stack:
            pool = ThreadPoolExecutor(4)
            stack.callback(pool.shutdown, cancel_futures=True)  # whoever asked has had enough, or has failed
            queue: list[list[Future[Decoded | None]]] = []
            done = len(self.kept)
            rest = itertools.islice(groups, done, None)
            room = DECODED - sum(pixels.nbytes for found in self.kept for _, pixels in found)
            while True:
                queue += [[pool.submit(decode, p) for p in paths] for paths in itertools.islice(rest, AHEAD - len(queue))]
                if not queue:
                    break
                found = [image for future in queue.pop(0) if (image := future.result()) is not None]
                room -= sum(pixels.nbytes for _, pixels in found)
                if room >= 0 and len(self.kept) == done:  # and nobody else went through them meanwhile
                    self.kept.append(found)
                    done += 1
                if found:
                    yield found
