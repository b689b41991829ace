"""The first of the calibration inputs, as many as a pass needs, in batches that fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toastc.calibration.data import Batch, fixed_batch
from toastc.graphs.protocols import Runner
from toastc.system.arrays import as_array
from toastc.system.cores import beside_each_other

from ..state import State

AT_ONCE = 4  # inputs that run together


def outputs_of(graph: Runner, feeds: Sequence[Batch]) -> list[list[np.ndarray]]:
    """What a graph makes of each of these."""
    lanes = min(graph.lanes, len(feeds))
    probe = graph.probe([], lanes=lanes)
    return list(beside_each_other(lambda feed: [as_array(out) for out in probe(feed)[0]], feeds, lanes))


def few(state: State, count: int, at_once: int) -> list[Batch]:
    """So many inputs of the data, a few at a time; as many as the model takes where it takes no other number."""
    batches = first(state.data, count)
    if fixed_batch(state.graph.input_sizes()) is not None:
        return batches
    found: list[Batch] = []
    for batch in batches:
        own = min(count, len(next(iter(batch.values()))))
        count -= own
        found += sliced({k: array[:own] for k, array in batch.items()}, at_once)
    return found


def sliced(batch: Batch, at_once: int) -> list[Batch]:
    count = len(next(iter(batch.values())))
    return [{k: array[at : at + at_once] for k, array in batch.items()} for at in range(0, count, at_once)]


def first(data: Any, count: int) -> list[Batch]:
    """As many batches as hold `count` inputs, as the model takes them."""
    found: list[Batch] = []
    have = 0
    for batch in data:
        found.append(batch)
        have += len(next(iter(batch.values())))
        if have >= count:
            break
    return found
