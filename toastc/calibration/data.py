"""Where calibration inputs come from: a folder of images, an array file, or any iterable of batches.

Whatever cannot be read is skipped, counted and named.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..system.arrays import as_array
from ..system.errors import ToastcError
from .arrays import ARRAY_SUFFIXES, Rows, load_arrays
from .decoding import Decoder
from .images import Preprocess
from .labels import LABEL, Labels

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif"}
BATCH = 32  # inputs that are read at one time

Batch = dict[str, np.ndarray]


@dataclass
class Batches:
    """Iterated once for each use; every batch maps the model's input names to arrays. `notes` tell what went wrong.

    Inputs from `skip` up to `limit`, counted in the order in which they come.
    """

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
    decoder: Decoder = field(default_factory=Decoder)
    skip: int = 0
    labels: Labels | None = None  # what each of them is

    def __post_init__(self) -> None:
        fixed = self._fixed()
        if fixed is not None:
            self.batch = fixed
            self.limit = None if self.limit is None else -(-self.limit // fixed) * fixed
        self.size = max(0, (self.limit or 0) - self.skip)

    def divided(self, first: int) -> tuple[Batches, Batches]:
        """The first so many inputs (as many as make whole batches, where the model takes no others), and all others."""
        first = -(-first // (self._fixed() or 1)) * (self._fixed() or 1)
        return replace(self, limit=first, decoder=Decoder(), notes=[]), replace(self, skip=first, decoder=Decoder())

    def counted(self) -> int:
        """How many inputs there are, if one has to go through them to tell."""
        return self.count or sum(len(next(iter(batch.values()))) for batch in self)

    def labelled(self) -> Iterator[Batch]:
        """Batches, and among their arrays (`LABEL`) what the inputs are."""
        return self._checked(self._cut(self._raw()))

    def part(self, rank: int, count: int) -> Batches:
        """The batches of one of several processes; all together read what one alone would."""
        return self if count == 1 else replace(self, shard=(rank, count), decoder=Decoder())

    def __iter__(self) -> Iterator[Batch]:
        empty = self.shard[1] == 1
        for batch in self._checked(self._cut(self._raw())):
            batch.pop(LABEL, None)
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
            return max(0, len(self.source) - self.skip)
        if not self.size and isinstance(self.source, str | Path) and Path(self.source).is_dir():
            return max(0, len(image_files(Path(self.source))) - self.skip)
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
            first, room = max(0, self.skip - seen), None if self.limit is None else self.limit - seen
            named = self._named(item)
            count = len(next(iter(named.values()), ()))
            if self.labels is not None:
                named |= {LABEL: self.labels.of_rows(np.arange(seen, seen + count))}
            if number % self.shard[1] == self.shard[0] and first < count:
                yield {name: array[first:room] for name, array in named.items()}
            seen += count
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
        order = np.random.default_rng(self.seed).permutation(count)[self.skip : self.limit]
        self.size = len(order)
        for rows in map(np.sort, self._own(order)):
            batch = {name: np.asarray(arrays[name][rows]) for name in self.inputs}
            yield batch if self.labels is None else batch | {LABEL: self.labels.of_rows(rows)}

    def _own(self, items: Any) -> Iterator[Any]:
        """Those of this process, a batch at a time."""
        starts = range(0, len(items), self.batch)
        return (items[start : start + self.batch] for start in starts[self.shard[0] :: self.shard[1]])

    def _images(self, folder: Path) -> Iterator[Batch]:
        files = image_files(folder)
        if not files:
            raise ToastcError(f"calibrate: {folder}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        random.Random(self.seed).shuffle(files)
        files = files[self.skip : self.limit]
        self.size = len(files)
        name = next(iter(self.inputs))
        prepare = (self.preprocess or Preprocess()).fit(self.inputs[name])
        self.notes.append(f"images of {folder}: {prepare}")
        for found in self.decoder(self._own(files), prepare):
            batch = {name: prepare.scaled(np.stack([pixels for _, pixels in found]))}
            yield batch if self.labels is None else batch | {LABEL: self.labels.of_files(folder, [path for path, _ in found])}
        if failed := self.decoder.failed:
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
