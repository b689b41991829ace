"""Files of ready inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..system.errors import ToastcError

ARRAY_SUFFIXES = {".npy", ".npz", ".safetensors"}


class Rows:
    """An array in a .npy file, read row by row: a mapped file that somebody makes shorter would end the process."""

    def __init__(self, path: Path) -> None:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        self.path, self.shape, self.dtype, self.offset = path, mapped.shape, mapped.dtype, getattr(mapped, "offset", 0)
        self.whole = None if mapped.flags.c_contiguous and mapped.ndim else np.array(mapped)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if self.whole is not None:
            return np.asarray(self.whole[rows])
        size = int(np.prod(self.shape[1:], dtype=np.int64))
        made = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for own, row in zip(made.reshape(len(rows), -1), rows, strict=True):
            read = np.fromfile(self.path, self.dtype, size, offset=self.offset + int(row) * size * self.dtype.itemsize)
            if len(read) < size:
                raise ToastcError(f"calibrate: {self.path}: became shorter while it was read")
            own[:] = read
        return made


def load_arrays(path: Path) -> Mapping[str, np.ndarray | Rows]:
    try:
        if path.suffix == ".npy":
            return {"": Rows(path)}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        from safetensors.numpy import load_file

        return load_file(path)
    except Exception as error:  # noqa: BLE001  three libraries, each with classes of its own
        raise ToastcError(f"calibrate: {path}: can not be read ({' '.join(str(error).split())[:120]})") from None
