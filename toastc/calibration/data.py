"""Where calibration inputs come from: a folder of images, an array file, or any iterable of batches.

Images are decoded by threads while the model runs. Whatever cannot be read is skipped, counted and named.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..system.arrays import as_array
from ..system.errors import ToastcError
from .arrays import ARRAY_SUFFIXES, Rows, load_arrays
from .images import Preprocess

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif"}
BATCH = 32  # inputs that are read at one time
AHEAD = 3  # batches decoded in advance
DECODED = 64 << 20  # bytes of pixels that are kept, so that they are not decoded again for the next pass

Batch = dict[str, np.ndarray]


@dataclass
class Batches:
    """Iterated once for each use; every batch maps the model's input names to arrays. `notes` tell what went wrong."""

    source: Any
    inputs: Mapping[str, tuple[int | None, ...]]  # the model's inputs and their sizes, None where free
    limit: int | None = None
    batch: int = BATCH
    seed: int = 0
    preprocess: Preprocess | None = None
    dtype: Any = np.float32
    notes: list[str] = field(default_factory=list)
    shard: tuple[int, int] = (0, 1)  # every so many batches are read, from this one on
    size: int = 0  # how many inputs there will be, as far as one knows
    decoded: list[list[np.ndarray]] = field(default_factory=list)  # the pixels of the first batches of images

    def __post_init__(self) -> None:
        fixed = self._fixed()
        if fixed is not None:
            self.batch = fixed
            self.limit = None if self.limit is None else -(-self.limit // fixed) * fixed
        self.size = self.limit or 0

    def part(self, rank: int, count: int) -> Batches:
        """The batches of one of several processes; all together read what one alone would."""
        return self if count == 1 else replace(self, shard=(rank, count), decoded=[])

    def __iter__(self) -> Iterator[Batch]:
        empty = self.shard[1] == 1
        for batch in self._checked(self._cut(self._raw())):
            empty = False
            yield batch
        if empty:
            raise ToastcError(f"calibrate: {self.name} holds no inputs{self._too_few()}")

    def _too_few(self) -> str:
        return "" if self._fixed() in (None, 1) else f", or fewer than the {self._fixed()} that the model takes at a time"

    @property
    def count(self) -> int:
        """How many inputs there will be, where that can be told at once; 0 where it can not."""
        if not self.size and hasattr(self.source, "shape"):
            return len(self.source)
        if not self.size and isinstance(self.source, str | Path) and Path(self.source).is_dir():
            return len(image_files(Path(self.source)))
        return self.size

    @property
    def name(self) -> str:
        return str(self.source) if isinstance(self.source, str | Path) else type(self.source).__name__

    def _fixed(self) -> int | None:
        """The batch size that the model was exported with, if it takes no other."""
        return fixed_batch(self.inputs)

    def _cut(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches of the size that the model takes; what is left over at the end goes unused."""
        size = self._fixed()
        if size is None:
            yield from batches
            return
        rest: Batch = {}
        for batch in batches:
            rest = {k: np.concatenate([rest[k], v]) for k, v in batch.items()} if rest else batch
            while len(next(iter(rest.values()))) >= size:
                yield {k: v[:size] for k, v in rest.items()}
                rest = {k: v[size:] for k, v in rest.items()}

    def _raw(self) -> Iterable[Batch]:
        if hasattr(self.source, "shape"):  # one array of everything
            return self._arrays({"": as_array(self.source)}, self.name)
        if not isinstance(self.source, str | Path):
            return self._given()
        path = Path(self.source)
        if path.is_dir():
            return self._images(path)
        if not path.exists():
            raise ToastcError(f"calibrate: {path}: no such file or folder")
        if path.suffix not in ARRAY_SUFFIXES:
            raise ToastcError(f"calibrate: {path}: give a folder of images, or {', '.join(sorted(ARRAY_SUFFIXES))}")
        return self._arrays(load_arrays(path), str(path))

    def _given(self) -> Iterator[Batch]:
        seen = 0
        for number, item in enumerate(self.source):
            room = None if self.limit is None else self.limit - seen
            batch = {name: array[:room] for name, array in self._named(item).items()}
            if number % self.shard[1] == self.shard[0]:
                yield batch
            seen += len(next(iter(batch.values()), ()))
            if self.limit is not None and seen >= self.limit:
                return

    def _named(self, item: Any) -> Batch:
        """A batch somebody else made: a mapping by input name, or arrays in the order of the inputs."""
        if isinstance(item, Mapping):
            self._has_all(item)
            return {str(k): as_array(v) for k, v in item.items() if str(k) in self.inputs}
        parts = list(item) if isinstance(item, tuple | list) else [item]
        return {name: as_array(part) for name, part in zip(self.inputs, parts, strict=False)}

    def _has_all(self, batch: Mapping[Any, Any]) -> None:
        missing = next((name for name in self.inputs if name not in batch), None)
        if missing is not None:
            raise ToastcError(f"calibrate: the data has no input called {missing}; it has {', '.join(map(str, batch))}")

    def _arrays(self, arrays: Mapping[str, np.ndarray | Rows], what: str) -> Iterator[Batch]:
        if len(arrays) == 1:
            arrays = {next(iter(self.inputs)): next(iter(arrays.values()))}
        missing = [name for name in self.inputs if name not in arrays]
        if missing:
            raise ToastcError(f"calibrate: {what}: has no array called {missing[0]}; it has {', '.join(arrays)}")
        count = min(len(arrays[name]) if arrays[name].shape else 0 for name in self.inputs)
        order = np.random.default_rng(self.seed).permutation(count)[: self.limit]
        self.size = len(order)
        for rows in map(np.sort, self._own(order)):
            yield {name: np.asarray(arrays[name][rows]) for name in self.inputs}

    def _own(self, items: Any) -> Iterator[Any]:
        """Those of this process, a batch at a time."""
        starts = range(0, len(items), self.batch)
        return (items[start : start + self.batch] for start in starts[self.shard[0] :: self.shard[1]])

    def _images(self, folder: Path) -> Iterator[Batch]:
        files = image_files(folder)
        if not files:
            raise ToastcError(f"calibrate: {folder}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        random.Random(self.seed).shuffle(files)
        files = files[: self.limit]
        self.size = len(files)
        name = next(iter(self.inputs))
        prepare = (self.preprocess or Preprocess()).fit(self.inputs[name])
        self.notes.append(f"images of {folder}: {prepare}")
        failed: list[str] = []

        def decode(path: Path) -> np.ndarray | None:
            try:
                return prepare.pixels(path)
            except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on damaged files
                failed.append(f"{path.name} ({' '.join(str(error).split())[:60]})")
                return None

        yield from ({name: prepare.scaled(np.stack(pixels))} for pixels in self.decoded if pixels)
        with contextlib.ExitStack() as stack:
            pool = ThreadPoolExecutor(4)
            stack.callback(pool.shutdown, cancel_futures=True)  # whoever asked has had enough, or has failed
            queue: list[list[Future[np.ndarray | None]]] = []
            done = len(self.decoded)
            rest = itertools.islice(self._own(files), done, None)
            room = DECODED - sum(image.nbytes for pixels in self.decoded for image in pixels)
            while True:
                queue += [[pool.submit(decode, p) for p in paths] for paths in itertools.islice(rest, AHEAD - len(queue))]
                if not queue:
                    break
                pixels = [image for future in queue.pop(0) if (image := future.result()) is not None]
                room -= sum(image.nbytes for image in pixels)
                if room >= 0 and len(self.decoded) == done:  # and nobody else went through them meanwhile
                    self.decoded.append(pixels)
                    done += 1
                if pixels:
                    yield {name: prepare.scaled(np.stack(pixels))}
        if failed:
            self.notes.append(f"{len(failed)} of {len(files)} images could not be read and were skipped: {', '.join(failed[:3])}")

    def _checked(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._has_all(batch)
            for name, sizes in self.inputs.items():
                array = batch[name]
                if array.ndim != len(sizes) or any(
                    a != b for a, b in zip(array.shape[1:], sizes[1:], strict=True) if b is not None
                ):
                    wanted = " x ".join("n" if s is None or i == 0 else str(s) for i, s in enumerate(sizes))
                    raise ToastcError(f"calibrate: {name} is {' x '.join(map(str, array.shape))}, the model takes {wanted}")
                if array.dtype.kind == "f":
                    if not np.isfinite(array).all():
                        raise ToastcError(f"calibrate: {name} holds NaN or infinite numbers")
                    batch[name] = array.astype(self.dtype, copy=False)
            yield batch


def image_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def fixed_batch(inputs: Mapping[str, Sequence[int | None]]) -> int | None:
    return next((sizes[0] for sizes in inputs.values() if sizes and sizes[0] is not None), None)


def open_data(source: Any, inputs: Mapping[str, Sequence[int | None]], **options: Any) -> Batches:
    """Data for a model with these inputs; the size of the images is the model's where that is fixed."""
    if isinstance(source, Iterator):
        kind = type(source).__name__
        raise ToastcError(f"calibrate: a {kind} can be read only once; give a list of batches, or a DataLoader")
    sizes = {name: tuple(s) for name, s in inputs.items()}
    return Batches(source, sizes, **options)
