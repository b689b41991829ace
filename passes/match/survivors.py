"""What is left of values whose tokens a `TokenFlow` followed, when some of them go."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from toastc.errors import CannotShrink
from toastc.graphs import Kind, Op, Value
from toastc.views import compact

from .token_flow import TokenFlow


def touched(flow: TokenFlow) -> Iterator[Op]:
    """Shape nodes on the way, apart from those that take the whole sequence."""
    for op in flow.graph.ops:
        if op.kind is Kind.SHAPE and op not in flow.whole and any(v in flow.tracks for v in op.inputs):
            yield op


def surviving(flow: TokenFlow, stays: np.ndarray, value: Value) -> np.ndarray:
    """The numbers of the tokens that stay, in the shape the value will have. `stays` by number; the last is for none."""
    shape = flow.graph.shape(value)
    tracks = flow.tracks.get(value) or flow.alone.get(value, [])
    ids, mask = np.full(shape, -1), np.ones(shape, bool)
    for number, track in enumerate(tracks):
        ids = np.where(track >= 0, track + np.maximum(ids, 0) * (number * len(stays) + 1), ids)
        mask = mask & stays[track]
    small = compact(mask)
    if small is None:
        raise CannotShrink(f"tokens: what stays of {flow.graph.producer(value)} is no grid")
    return np.take(ids, small[1])
