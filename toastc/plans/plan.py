"""A plan says what stays of every coupling. It is data: printed, saved, diffed, replayed, embedded in a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..system.errors import ToastcError
from ..system.files import write_beside
from ..system.vocabulary import Read
from .choices import CONSUMERS, READERS, Basis, Choice, Keep, Select
from .consumer import Consumer
from .merges import Merge, parse_merges
from .sites import Coupling, Site

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """`choices["blocks.0.attn.qk"]`; couplings that are not listed stay as they are. Tokens are merged first."""

    choices: Mapping[str, Choice] = field(default_factory=dict)
    merges: tuple[Merge, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.choices or self.merges)

    def __repr__(self) -> str:
        widths = ", ".join(f"{name}: {choice.width}" for name, choice in list(self.choices.items())[:4])
        more = f", ... {len(self.choices)} in all" if len(self.choices) > 4 else ""
        return f"<Plan {widths}{more}{'; tokens merged' if self.merges else ''}>"

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
            if isinstance(choice, Select):
                row |= choice.to_dict()
            elif choice.of is not None:
                row |= {"of": choice.of, "folded": not choice.exact, "shifted": choice.shifts}
            if indices and isinstance(choice, Keep):
                row["index"] = choice.index.tolist()
            out[name] = row
        return {"format": FORMAT, "choices": out} | ({"tokens": [m.to_dict() for m in self.merges]} if self.merges else {})

    def save(self, path: Path) -> None:
        """safetensors, with the JSON form in its metadata."""
        from safetensors.numpy import save_file

        tensors = {
            f"{name}/{key}": np.ascontiguousarray(array)
            for name, choice in self.choices.items()
            for key, array in choice.arrays().items()
        }
        with write_beside(path) as temporary:
            save_file(tensors, temporary, {"toastc": json.dumps(self.to_dict(indices=False))})

    @staticmethod
    def load(path: Path) -> Plan:
        from safetensors import SafetensorError, safe_open
        from safetensors.numpy import load_file

        try:
            with safe_open(path, "numpy") as file:
                about = json.loads((file.metadata() or {}).get("toastc", "{}"))
            return replace(from_arrays(load_file(path)), merges=parse_merges(about.get("tokens", [])))
        except FileNotFoundError:
            raise ToastcError(f"{path}: no such plan file") from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ToastcError(f"{path}: not a toastc plan ({error})") from None


def check_plan(plan: Plan, sites: Sequence[Site]) -> None:
    """A plan is for one model: every name is known there, may be cut, and is as wide as the plan thinks."""
    known = {f"{s.name}.{c.name}": c for s in sites for c in s.every}
    for name, choice in plan.choices.items():
        coupling = known.get(name)
        why = "the model has no such coupling" if coupling is None else coupling.reason or choice.fits(coupling)
        if why:
            raise ToastcError(f"plan: {name} can not be cut: {why}")


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Plan:
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        name, _, what = key.rpartition("/")
        parts.setdefault(name, {})[what] = array
    return Plan({name: choice_of(name, part) for name, part in parts.items()})


def choice_of(name: str, part: Mapping[str, np.ndarray]) -> Choice:
    kinds: dict[str, Callable[..., Choice]] = {"index": Keep.from_arrays, "left": Basis.from_arrays, "select": Select.from_arrays}
    for key, kind in kinds.items():
        if key in part:
            return kind(**part)
    raise ValueError(f"{name} has neither {', '.join(kinds)}")


def from_dict(data: Read) -> Plan:
    """The JSON form, back to a plan: index sets exactly; of folds, bases and shifts only that they are there."""
    choices: dict[str, Choice] = {}
    for name, row in data["choices"].items():
        blank = np.zeros((int(row["groups"]), int(row.get("of", 0)), int(row["width"])))
        shift = blank[:, :, 0] if row.get("shifted") else None
        if row["kind"] == "keep":
            choices[name] = Keep(np.array(row["index"]), blank if row.get("folded") else None, shift)
        elif row["kind"] == "basis":
            choices[name] = Basis(blank.transpose(0, 2, 1), blank, shift)
        elif row["kind"] == "select":
            choices[name] = Select.from_dict(row)
        else:
            raise ValueError(f"a choice of kind {row['kind']}")
    return Plan(choices, parse_merges(data.get("tokens", [])))


__all__ = [
    "CONSUMERS", "READERS", "Basis", "Choice", "Consumer", "Keep", "Plan", "Select", "check_plan", "from_arrays", "from_dict",
]  # fmt: skip
