"""The proof: padded back, the pruned weights give the same outputs in the dense graph. What files and modules share of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import numpy as np

from toastc.calibration.data import fixed_batch
from toastc.calibration.synthetic import Synthetic
from toastc.graphs.protocols import Runner
from toastc.system.arrays import as_array
from toastc.system.vocabulary import Array

from ..analyse.inputs import AT_ONCE, outputs_of, sliced

TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1}  # bfloat16 in torch; files are computed in float32
DEFAULT_TOLERANCE = 1e-4
COMPARED = 8  # calibration inputs
BLIND = (
    "this proof says little: with all weights that were cut at zero, the outputs change by {:.0e} of their scale "
    "(weights that were never trained, or a head of zeros?)"
)


@dataclass(frozen=True)
class Verification:
    """`error` is the largest difference of any output, relative to the largest value of that output."""

    ok: bool
    error: float
    tolerance: float
    inputs: int
    padded: int
    reason: str = ""
    note: str = ""  # what has to be known of a proof that holds

    @staticmethod
    def failed(reason: str, tolerance: float, padded: int = 0, inputs: int = 0) -> Verification:
        return Verification(False, float("inf"), tolerance, inputs, padded, reason)

    @staticmethod
    def of(worst: float, tolerance: float, inputs: int, padded: int, blank: float) -> Verification:
        """`blank`: by how much the outputs change where all weights that were cut are zero."""
        reason = "" if worst <= tolerance else f"outputs differ by {worst:.2e} of their scale, allowed {tolerance:.0e}"
        note = BLIND.format(blank) if blank <= tolerance else ""
        return Verification(worst <= tolerance, worst, tolerance, inputs, padded, reason, note)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def output_error(
    open_dense: Callable[[], Runner], open_pruned: Callable[[], Runner], data: Any, apart: bool = False
) -> dict[str, object]:
    """How far the pruned model's outputs are from the dense one's, on a few of these inputs, of which some were calibrated on,
    or, `apart`, none.
    """
    graph = open_dense()
    feed, of = some_inputs(graph, data)
    count = len(next(iter(feed.values())))
    pieces = [feed] if fixed_batch(graph.input_sizes()) else sliced(feed, AT_ONCE)
    expected = outputs_of(graph, pieces)
    del graph
    made = outputs_of(open_pruned(), pieces)
    error = rms_apart([pair for each in zip(expected, made, strict=True) for pair in zip(*each, strict=True)])
    return {"error": error, "inputs": count, "of": "held-out inputs" if apart else of}


def some_inputs(graph: Runner, data: Any) -> tuple[dict[str, np.ndarray], str]:
    """A few of those that were calibrated on, and what to call them."""
    some = fixed_batch(graph.input_sizes()) or COMPARED
    feed = {name: array[:some] for name, array in next(iter(data)).items()}
    return feed, "synthetic images" if isinstance(data, Synthetic) else "calibration inputs"


def rms_apart(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """How far outputs are from others, relative to those, where those are finite; masked outputs are not."""
    known = [(a, b, np.isfinite(a)) for a, b in pairs if a.dtype.kind == "f"]
    floats = [(a[real].astype(np.float64), b[real].astype(np.float64)) for a, b, real in known]
    off, of = (sum(float(np.square(x).sum()) for x in some) for some in ((a - b for a, b in floats), (a for a, _ in floats)))
    return float((off / max(of, 1e-30)) ** 0.5)


def furthest(dense: Sequence[Array], pruned: Sequence[Array]) -> float:
    """The largest difference of any output, relative to the dense model's; infinite where there is none: that proves nothing."""
    return max((difference(as_array(a), as_array(b)) for a, b in zip(dense, pruned, strict=True)), default=inf)


def difference(expected: np.ndarray, got: np.ndarray) -> float:
    """max |a - b| / max |a|; infinite where shapes, types or the places of NaN differ."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return float("inf")
    if expected.dtype.kind not in "fc" and expected.dtype.name != "bfloat16":
        return 0.0 if np.array_equal(expected, got) else float("inf")
    a, b = expected.astype(np.float64), got.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    scale = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    return float(np.abs(np.where(same, 0.0, a - b)).max() / max(scale, 1e-30))
