"""What is left of values whose tokens a `TokenFlow` followed, when some of them go."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from toastc.graphs import Kind, Op, Value

from .flow import TokenFlow


def touched(flow: TokenFlow) -> Iterator[Op]:
    """Shape nodes on the way, apart from those that take the whole sequence."""
    for op in flow.graph.ops:
        if op.kind is Kind.SHAPE and op not in flow.whole and any(v in flow.tracks for v in op.inputs):
            yield op


def surviving(flow: TokenFlow, stays: np.ndarray, value: Value) -> np.ndarray:
    """Which elements of a value stay, by the tokens they are of. `stays` by number; the last is for none."""
    mask = np.ones(flow.graph.shape(value), bool)
    for track in flow.tracks.get(value) or flow.alone.get(value, []):
        mask = mask & stays[track]
    return mask
