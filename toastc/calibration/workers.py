"""Processes that share the work of calibration: those torchrun started, or this one alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """`rank` of `count`. Whatever is added up is the same in all of them afterwards."""

    rank: int = 0
    count: int = 1

    def own(self, items: Sequence[T]) -> list[T]:
        return list(items[self.rank :: self.count])

    def add(self, array: np.ndarray) -> np.ndarray:
        """The sum over all processes."""
        if self.count == 1:
            return array
        import torch
        import torch.distributed as dist

        tensor = torch.from_numpy(np.array(array, order="C"))
        dist.all_reduce(tensor)
        return tensor.numpy()

    @staticmethod
    @contextlib.contextmanager
    def started() -> Iterator[Workers]:
        """As torchrun's environment says. The sums are numpy arrays on every device, so the processes talk through gloo."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            yield Workers()
            return
        import torch.distributed as dist

        dist.init_process_group("gloo")
        try:
            yield Workers(dist.get_rank(), count)
        finally:
            dist.destroy_process_group()
