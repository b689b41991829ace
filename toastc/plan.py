"""A plan says what stays of every coupling. It is data: printed, saved, diffed, replayed, embedded in a model.

`Keep(index)`: these channels stay; index[groups, width'] holds positions within the group. An optional `fold` lets the
consumer make up for what is gone: its columns become `W . fold`.
`Basis(left, right)`: producers become `left . W`, the consumer `W . right`; left is [groups, width', width].
Between Q and K, Q is the producer and K the consumer: q' = left q, k' = right^T k.

`fold` and `right` either treat every group alone, [groups, width, width'], or all channels together,
[groups * width, kept groups * width']. An optional `shift` [groups, width] is what the gone channels are on
average: the consumer's bias becomes `b + W . shift`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .errors import ToastcError
from .sites import Coupling, Site

FORMAT = 1
CONSUMERS = ("k", "out")  # roles of the members that meet what the others produce


@dataclass(frozen=True, eq=False)
class Keep:
    index: np.ndarray
    fold: np.ndarray | None = None
    shift: np.ndarray | None = None

    def __post_init__(self) -> None:
        index, fold = self.index, self.fold
        require(index.ndim == 2 and index.dtype.kind in "iu" and index.shape[1] > 0, "an index is whole numbers, groups x width")
        require(bool((index >= 0).all() and (np.diff(index) > 0).all()), "an index holds rising positions")
        if fold is not None:
            require(fold.ndim == 2 or fold.shape[::2] == index.shape, "a fold is [groups, width, kept] or [channels, kept]")
        require(self.shift is None or (self.shift.ndim == 2 and len(self.shift) == len(index)), "a shift is [groups, width]")

    @property
    def width(self) -> int:
        return int(self.index.shape[1])

    @property
    def exact(self) -> bool:
        return self.fold is None

    @property
    def of(self) -> int | None:
        """How many channels a group had, where the choice tells."""
        if self.shift is not None:
            return int(self.shift.shape[1])
        if self.fold is None:
            return None
        return int(self.fold.shape[1] if self.fold.ndim == 3 else self.fold.shape[0] // len(self.index))

    def mixes(self, role: str) -> bool:
        """Does a member of this role get new numbers? Else those that stay are those that were."""
        return self.fold is not None and role in CONSUMERS

    def fits(self, coupling: Coupling) -> str:
        """Why this can not be done to the coupling, if so."""
        if len(self.index) != coupling.groups or self.index.max() >= coupling.width:
            return f"it is for other widths than the model's {coupling.groups} x {coupling.width}"
        return unfit(self.fold, self.shift, coupling)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"index": self.index.astype(np.int32)} | given(fold=self.fold, shift=self.shift)


@dataclass(frozen=True, eq=False)
class Basis:
    left: np.ndarray
    right: np.ndarray
    shift: np.ndarray | None = None
    exact = False

    def __post_init__(self) -> None:
        left, right = self.left, self.right
        require(left.ndim == 3 and 0 < left.shape[1] <= left.shape[2], "a basis keeps some of [groups, kept, width]")
        back = (len(left), left.shape[2], left.shape[1])
        require(right.ndim == 2 or right.shape == back, "a basis leads back by [groups, width, kept] or [channels, kept]")
        require(self.shift is None or self.shift.shape == left.shape[::2], "a shift is [groups, width]")

    def mixes(self, role: str) -> bool:
        return True

    def fits(self, coupling: Coupling) -> str:
        if not coupling.rotatable:
            return "it is no coupling whose channels may be mixed"
        if self.left.shape[::2] != (coupling.groups, coupling.width):
            return f"its basis is for {self.left.shape[::2]} channels, the model has {coupling.groups} x {coupling.width}"
        return unfit(self.right, self.shift, coupling)

    @property
    def width(self) -> int:
        return int(self.left.shape[1])

    @property
    def of(self) -> int:
        return int(self.left.shape[2])

    @property
    def index(self) -> np.ndarray:
        """Where the new channels stand when they are padded back: at the front of their group."""
        return np.broadcast_to(np.arange(self.width), self.left.shape[:2])

    def arrays(self) -> dict[str, np.ndarray]:
        return {"left": self.left, "right": self.right} | given(shift=self.shift)


Choice = Keep | Basis


@dataclass(frozen=True)
class Plan:
    """`choices["blocks.0.attn.qk"]`; couplings that are not listed stay as they are."""

    choices: Mapping[str, Choice] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.choices)

    def __iter__(self) -> Iterator[str]:
        return iter(self.choices)

    def get(self, site: str, coupling: str) -> Choice | None:
        return self.choices.get(f"{site}.{coupling}")

    def groups(self, site: str, coupling: Coupling) -> list[int]:
        """The groups of a coupling that stay: those whose heads do."""
        heads = self.get(site, "heads") if coupling.name in ("qk", "vo") else None
        return list(range(coupling.groups)) if heads is None else [int(g) for g in heads.index[0]]

    def to_dict(self, indices: bool = True) -> dict[str, object]:
        """JSON: widths of every choice, and what was kept. Matrices are only in the safetensors form."""
        out: dict[str, object] = {}
        for name, choice in sorted(self.choices.items()):
            row: dict[str, object] = {"kind": type(choice).__name__.lower(), "groups": len(choice.index), "width": choice.width}
            if choice.of is not None:
                row |= {"of": choice.of, "folded": not choice.exact, "shifted": choice.shift is not None}
            if indices and isinstance(choice, Keep):
                row["index"] = choice.index.tolist()
            out[name] = row
        return {"format": FORMAT, "choices": out}

    def save(self, path: Path) -> None:
        """safetensors, with the JSON form in its metadata."""
        from safetensors.numpy import save_file

        from .files import write_beside

        tensors = {
            f"{name}/{key}": np.ascontiguousarray(array)
            for name, choice in self.choices.items()
            for key, array in choice.arrays().items()
        }
        with write_beside(path) as temporary:
            save_file(tensors, temporary, {"toastc": json.dumps(self.to_dict(indices=False))})

    @staticmethod
    def load(path: Path) -> Plan:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return from_arrays(load_file(path))
        except FileNotFoundError:
            raise ToastcError(f"{path}: no such plan file") from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ToastcError(f"{path}: not a toastc plan ({error})") from None


def require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def check_plan(plan: Plan, sites: Sequence[Site]) -> None:
    """A plan is for one model: every name is known there, may be cut, and is as wide as the plan thinks."""
    known = {f"{s.name}.{c.name}": c for s in sites for c in (*s.couplings, *([s.heads] if s.heads else []))}
    for name, choice in plan.choices.items():
        coupling = known.get(name)
        why = "the model has no such coupling" if coupling is None else coupling.reason or choice.fits(coupling)
        if why:
            raise ToastcError(f"plan: {name} can not be cut: {why}")


def unfit(matrix: np.ndarray | None, shift: np.ndarray | None, coupling: Coupling) -> str:
    rows = None if matrix is None else matrix.shape[0] if matrix.ndim == 2 else matrix.shape[0] * matrix.shape[1]
    channels = coupling.groups * coupling.width
    if rows not in (None, channels):
        return f"it folds {rows} channels, the model has {channels}"
    if matrix is not None and matrix.ndim == 2 and not coupling.consumed:
        return "it folds its groups together, and no linear consumes them"
    if shift is not None and (shift.shape != (coupling.groups, coupling.width) or not coupling.consumed):
        return "it shifts channels that are not there, or that no linear consumes"
    return ""


def given(**arrays: np.ndarray | None) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if array is not None}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Plan:
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        name, _, what = key.rpartition("/")
        parts.setdefault(name, {})[what] = array
    return Plan({name: Keep(**part) if "index" in part else Basis(**part) for name, part in parts.items()})


def from_dict(data: Mapping[str, object]) -> Plan:
    """The JSON form, back to a plan: index sets exactly; of folds, bases and shifts only that they are there."""
    choices: dict[str, Choice] = {}
    for name, row in data["choices"].items():  # type: ignore[attr-defined]
        blank = np.zeros((int(row["groups"]), int(row.get("of", 0)), int(row["width"])))
        shift = blank[:, :, 0] if row.get("shifted") else None
        if row["kind"] == "keep":
            choices[name] = Keep(np.array(row["index"]), blank if row.get("folded") else None, shift)
        elif row["kind"] == "basis":
            choices[name] = Basis(blank.transpose(0, 2, 1), blank, shift)
        else:
            raise ValueError(f"a choice of kind {row['kind']}")
    return Plan(choices)
