"""What the inputs are: classes by number, given in the order of the inputs, or told by the folders that images lie in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..system.errors import ToastcError

LABEL = "/label"  # of a batch's inputs, beside them while a batch is made


@dataclass(frozen=True)
class Labels:
    """`numbers`, one for each input; or `folders`, the names of the classes, in the order of their numbers."""

    numbers: np.ndarray | None = None
    folders: tuple[str, ...] = ()

    @staticmethod
    def of(given: Any) -> Labels:
        """An array or a list of class numbers, or a file of them: .npy or .json."""
        if isinstance(given, str | Path):
            given = read(Path(given))
        numbers = np.asarray(given)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise ToastcError("labels: give one whole number for each input, or a folder of class folders")
        return Labels(numbers)

    @staticmethod
    def of_folders(folder: Path) -> Labels:
        """A folder for each class. Names that are numbers are the classes; else they stand in the order of their names."""
        names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not names:
            raise ToastcError(f"labels: {folder} holds no class folders")
        return Labels(folders=tuple(names))

    @property
    def numbered(self) -> bool:
        return all(name.isdigit() for name in self.folders)

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        if self.numbers is None:
            raise ToastcError("labels: class folders tell what images are; for arrays give numbers")
        if len(rows) and rows.max() >= len(self.numbers):
            raise ToastcError(f"labels: there are {len(self.numbers)}, fewer than the inputs")
        return np.asarray(self.numbers[rows])

    def of_files(self, folder: Path, files: Sequence[Path]) -> np.ndarray:
        if self.numbers is not None:
            raise ToastcError("labels: numbers tell what arrays are; what images are is told by class folders")
        names = [path.relative_to(folder).parts[0] for path in files]
        if self.numbered:
            return np.array([int(name) for name in names])
        order = {name: number for number, name in enumerate(self.folders)}
        stray = next((path for path, name in zip(files, names, strict=True) if name not in order), None)
        if stray is not None:
            raise ToastcError(f"labels: {stray} lies in no class folder")
        return np.array([order[name] for name in names])

    def check(self, classes: int) -> None:
        """Do the names stand for the classes of a model that tells so many apart?"""
        if self.folders and not self.numbered and len(self.folders) != classes:
            raise ToastcError(
                f"labels: there are {len(self.folders)} class folders, and the model tells {classes} classes apart; "
                "name the folders by the numbers of the classes"
            )


def read(path: Path) -> Any:
    try:
        return np.load(path) if path.suffix == ".npy" else json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ToastcError(f"labels: {path}: can not be read ({str(error)[:120]})") from None


def has_class_folders(source: Any) -> bool:
    """A folder in which nothing but folders lies?"""
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        return False
    inside = [p for p in Path(source).iterdir() if not p.name.startswith(".")]
    return bool(inside) and all(p.is_dir() for p in inside)
