"""Small inputs can make large results: a file of some bytes may ask for terabytes. Such nodes are not worked out here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .operators import operator

LARGE = 1 << 27  # elements of a value that is worked out at all


def stays_small(kind: str, given: Sequence[np.ndarray]) -> bool:
    """Is what an operator makes of these of a size that can be worked out? Most make no more of it than there is."""
    if kind == "Range" and len(given) == 3 and all(a.size == 1 for a in given):
        start, limit, step = (float(a.ravel()[0]) for a in given)
        return abs(limit - start) <= LARGE * abs(step)
    first = operator(kind).grows
    if first is not None:
        numbers = [1 + np.abs(a.astype(np.float64)) for a in given[first:] if a.dtype.kind in "iuf"]
        return math.prod(float(np.prod(n)) for n in numbers) * (given[0].size if first else 1) <= LARGE
    if kind == "Einsum":
        return math.prod(a.size for a in given) <= LARGE
    try:
        return math.prod(np.broadcast_shapes(*(a.shape for a in given))) <= LARGE
    except ValueError:  # they are not meant to be
        return True
