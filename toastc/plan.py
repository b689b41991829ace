"""A plan says what stays of every coupling. It is data: printed, saved, diffed, replayed, embedded in a model.

`Keep(index)`: these channels stay; index[groups, width'] holds positions within the group. An optional `fold`
[groups, width, width'] lets the consumer make up for what is gone: its columns become `W . fold`.
`Basis(left, right)`: producers become `left . W`, the consumer `W . right`; left [groups, width', width],
right [groups, width, width']. Between Q and K, Q is the producer and K the consumer: q' = left q, k' = right^T k.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .errors import ToastcError

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Keep:
    index: np.ndarray
    fold: np.ndarray | None = None

    @property
    def width(self) -> int:
        return int(self.index.shape[1])

    def arrays(self) -> dict[str, np.ndarray]:
        return {"index": self.index.astype(np.int32)} | ({} if self.fold is None else {"fold": self.fold})


@dataclass(frozen=True, eq=False)
class Basis:
    left: np.ndarray
    right: np.ndarray

    @property
    def width(self) -> int:
        return int(self.left.shape[1])

    @property
    def index(self) -> np.ndarray:
        """Where the new channels stand when they are padded back: at the front of their group."""
        return np.broadcast_to(np.arange(self.width), self.left.shape[:2])

    def arrays(self) -> dict[str, np.ndarray]:
        return {"left": self.left, "right": self.right}


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

    def to_dict(self, indices: bool = True) -> dict[str, object]:
        """JSON: widths of every choice, and what was kept. Matrices are only in the safetensors form."""
        out: dict[str, object] = {}
        for name, choice in sorted(self.choices.items()):
            row: dict[str, object] = {"kind": type(choice).__name__.lower(), "groups": len(choice.index), "width": choice.width}
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
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise ToastcError(f"{path}: not a toastc plan ({error})") from None


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Plan:
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        name, _, what = key.rpartition("/")
        parts.setdefault(name, {})[what] = array
    choices: dict[str, Choice] = {}
    for name, part in parts.items():
        choices[name] = (
            Keep(part["index"].astype(np.int64), part.get("fold")) if "index" in part else Basis(part["left"], part["right"])
        )
    return Plan(choices)


def from_dict(data: Mapping[str, object]) -> Plan:
    """The JSON form, back to a plan: index sets exactly; a basis is known by its width alone."""
    choices: dict[str, Choice] = {}
    for name, row in data["choices"].items():  # type: ignore[attr-defined]
        if row["kind"] == "keep":
            choices[name] = Keep(np.array(row["index"], np.int64))
        else:
            groups = int(row.get("groups", 1))
            empty = np.zeros((groups, int(row["width"]), 0))
            choices[name] = Basis(empty, empty.transpose(0, 2, 1))
    return Plan(choices)
