"""Moments: sums over everything a channel did. They stream, so memory does not grow with the data, and they add.

`Sums` holds, of vectors with some channels, their number, their sum and the sum of their outer products about their mean, either
of all channels together ([channels, channels]) or of each group alone ([groups, width, width]). While there are fewer vectors
than channels, the vectors themselves are kept, which take less.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from array_api_compat import array_namespace, device

from ..system.arrays import as_array
from ..system.errors import ToastcError
from ..system.files import write_beside
from ..system.vocabulary import Array, Json, Read
from .data import BATCH, Batch
from .workers import Workers

FORMAT = 5
INPUTS = "inputs"  # where a file has them; no coupling is called that


@dataclass(eq=False)
class Sums:
    """Of `count` vectors; `energy` and `energy2` are the sums of |x|^2 and |x|^4, which tell how sure the rest is.

    The outer products are large: they have the type of the vectors, and live where those do. They are taken about the mean,
    because a channel that hardly varies would be lost in the rounding otherwise.
    """

    count: float
    total: np.ndarray  # [groups, width]
    outer: Array  # [groups, width, width], or [1, channels, channels]; or [rows, channels], rows whose products they are
    absolute: np.ndarray  # [groups, width], of |x|
    energy: float = 0.0
    energy2: float = 0.0

    @staticmethod
    def of(rows: Array, together: bool) -> Sums:
        """`rows` [samples, groups, width], of numpy or torch. The products run where the rows live."""
        xp = array_namespace(rows)
        samples, groups, width = rows.shape
        absolute = to_float64(xp.sum(xp.abs(rows), axis=0))
        flat = xp.reshape(rows, (samples, -1))
        lengths = xp.vecdot(flat, flat)
        some = rows[:1, ...]  # sums of what is apart from it are exact where nothing varies
        apart = rows - some
        mean = xp.sum(apart, axis=0, keepdims=True) / samples
        apart -= mean
        total = samples * (to_float64(some[0, ...]) + to_float64(mean[0, ...]))
        outer = xp.reshape(apart, (samples, -1))
        if not together:
            side = xp.permute_dims(apart, (1, 0, 2))
            outer = xp.matmul(xp.permute_dims(side, (0, 2, 1)), side)
        elif samples >= groups * width:
            outer = products(outer)
        return Sums(float(samples), total, outer, absolute, float(xp.sum(lengths)), float(xp.sum(lengths**2)))

    @staticmethod
    def none(groups: int, width: int, together: bool) -> Sums:
        """Of no vectors."""
        side = groups * width if together else width
        outer = np.zeros((1 if together else groups, side, side), np.float32)
        return Sums(0.0, np.zeros((groups, width)), outer, np.zeros((groups, width)))

    def __add__(self, other: Sums) -> Sums:
        """Adds in place, because the sums of wide couplings are large; `self` is not to be used again."""
        if not (self.count and other.count):
            return other if other.count else self
        mine, theirs, count = self.rows, other.rows, self.count + other.count
        drift, share = other.mean - self.mean, self.count * other.count / count
        xp, place = array_namespace(other.outer), device(other.outer)
        if mine is not None and theirs is not None and len(mine) + len(theirs) < drift.size:
            row = xp.asarray(math.sqrt(share) * drift.reshape(1, -1), dtype=theirs.dtype, device=place)
            outer = xp.concat([xp.asarray(mine, device=place), theirs, row])
        else:
            outer = xp.asarray(self.scatter, device=place)
            outer += other.scatter
            add_products(outer, drift, share)
        total, absolute = self.total + other.total, self.absolute + other.absolute
        return Sums(count, total, outer, absolute, self.energy + other.energy, self.energy2 + other.energy2)

    @property
    def rows(self) -> Array | None:
        """[rows, channels]: as many vectors, or a few more, with the same outer products; None where those are known instead."""
        return self.outer if len(self.outer.shape) == 2 else None

    @property
    def scatter(self) -> Array:
        """The outer products, [groups, width, width] or [1, channels, channels]."""
        return self.outer if self.rows is None else products(self.outer)

    @property
    def mean(self) -> np.ndarray:
        """[groups, width]"""
        return self.total / self.count

    @property
    def squares(self) -> np.ndarray:
        """[groups, width]: the sums of x^2"""
        xp, rows = array_namespace(self.outer), self.rows
        diagonal = to_float64(xp.linalg.diagonal(self.outer) if rows is None else xp.sum(rows**2, axis=0))
        return np.asarray(diagonal.reshape(self.total.shape) + self.count * self.mean**2)

    @property
    def second(self) -> np.ndarray:
        """E[x x']"""
        made = to_float64(self.covariance)
        add_products(made, self.mean, 1.0)
        return made

    @property
    def covariance(self) -> Array:
        return self.scatter / self.count

    def about(self, mean: np.ndarray) -> Sums:
        """The same, with outer products about another mean, so that they can be added up; in place."""
        self.outer = self.scatter
        if self.count:
            add_products(self.outer, self.mean - mean, self.count)
        return self

    def gathered(self, workers: Workers) -> Sums:
        """Those of all processes; `self` is not to be used again."""
        if workers.count == 1:
            return self
        count, total = workers.add(np.array([self.count]))[0], workers.add(self.total)
        arrays = self.about(total / max(count, 1.0)).arrays()
        return Sums.from_arrays({name: workers.add(array) for name, array in arrays.items()})

    def arrays(self) -> dict[str, np.ndarray]:
        numbers = np.array([self.count, self.energy, self.energy2])
        return {"numbers": numbers, "total": self.total, "outer": as_array(self.outer), "absolute": self.absolute}

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> Sums:
        count, energy, energy2 = (float(x) for x in arrays["numbers"])
        return Sums(count, arrays["total"], arrays["outer"], arrays["absolute"], energy, energy2)


def products(rows: Array) -> Array:
    """[1, channels, channels]"""
    return (rows.T @ rows)[None, ...]


def add_products(scatter: Array, vectors: np.ndarray, weight: float) -> None:
    """Add weight * v v' in place, for each group or for all channels together."""
    xp = array_namespace(scatter)
    rows = xp.asarray(vectors.reshape(scatter.shape[0], -1), dtype=scatter.dtype, device=device(scatter))
    scatter += (weight * rows)[:, :, None] * rows[:, None, :]


def to_float64(array: Array) -> np.ndarray:
    return as_array(array).astype(np.float64)


@dataclass(eq=False)
class Moments:
    """`sums["blocks.0.attn.qk/q"]`: of the queries; `/k`: of the keys, less their mean over the tokens of one softmax;
    `<site>.vo/out`, `<site>.hidden/out`: of what the consumer takes. `images` says how much was seen; `gains`, how far
    an error of each coupling reaches, as far as it was measured.
    """

    sums: dict[str, Sums] = field(default_factory=dict)
    images: int = 0
    source: str = ""
    gains: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)  # some of those that were seen, to fit consumers on
    notes: tuple[str, ...] = ()  # what was noticed while measuring; not saved

    def __contains__(self, key: str) -> bool:
        return key in self.sums

    def __getitem__(self, key: str) -> Sums:
        return self.sums[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sums)

    def __bool__(self) -> bool:
        return bool(self.sums)

    @property
    def largest(self) -> int:
        """How many numbers are known of the widest coupling."""
        return max((math.prod(own.outer.shape) for own in self.sums.values()), default=1)

    def of(self, coupling: str) -> dict[str, Sums]:
        """What is known of one coupling, by the side it was watched on."""
        return {key.rpartition("/")[2]: sums for key, sums in self.sums.items() if key.rpartition("/")[0] == coupling}

    def batches(self) -> list[Batch]:
        """The inputs, as they were read."""
        count = len(next(iter(self.inputs.values())))
        return [{name: a[at : at + BATCH] for name, a in self.inputs.items()} for at in range(0, count, BATCH)]

    def note(self, key: str, sums: Sums) -> None:
        self.sums[key] = self.sums[key] + sums if key in self.sums else sums

    def gathered(self, workers: Workers) -> Moments:
        """Of all processes together; every one of them has seen the same keys."""
        if workers.count == 1:
            return self
        images = int(workers.add(np.array([float(self.images)]))[0])
        found = {key: own.gathered(workers) for key, own in self.sums.items()}
        return Moments(found, images, self.source, self.gains, self.inputs)

    def save(self, path: Path, more: Read | None = None) -> None:
        """What is said beside the numbers is one JSON text: several would stand in another order every time."""
        from safetensors.numpy import save_file

        tensors = {f"{k}/{n}": np.ascontiguousarray(a) for k, sums in self.sums.items() for n, a in sums.arrays().items()}
        tensors |= {f"{INPUTS}/{name}": np.ascontiguousarray(array) for name, array in self.inputs.items()}
        with write_beside(path) as temporary:
            about = {"format": FORMAT, "images": self.images, "source": self.source, "gains": self.gains} | dict(more or {})
            save_file(tensors, temporary, {"toastc": json.dumps(about)})

    @staticmethod
    def load(path: Path) -> Moments:
        return read_moments(path)[0]


def read_moments(path: Path) -> tuple[Moments, Json]:
    """The moments of a file, and what it says beside its numbers."""
    from safetensors import SafetensorError, safe_open

    parts: dict[str, dict[str, np.ndarray]] = {}
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {})["toastc"])
            for key in file.keys():  # noqa: SIM118  a safetensors file is no mapping
                name, _, what = key.rpartition("/")
                parts.setdefault(name, {})[what] = file.get_tensor(key)
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']}, not {FORMAT}; measure again")
        inputs = parts.pop(INPUTS, {})
        sums = {name: Sums.from_arrays(arrays) for name, arrays in parts.items()}
        return Moments(sums, int(about["images"]), about["source"], about["gains"], inputs), about
    except FileNotFoundError:
        raise ToastcError(f"{path}: no such moments file") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise ToastcError(f"{path}: not a moments file ({error})") from None
