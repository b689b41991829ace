"""verify: the pruned file equals the dense file with the pruned weights, zero-filled, in its place.

f_dense(pad(W')) == f_pruned(W')     on random inputs, at two sizes of every free axis
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toastc.calibration.data import as_array, fixed_batch
from toastc.calibration.synthetic import Synthetic
from toastc.graphs.protocols import Graph
from toastc.plans.plan import check_plan
from toastc.system.errors import ToastcError, VerificationFailed
from toastc.system.files import scratch

from ..match import match
from ..shrink.selections import hold_selections
from ..tokens.merge import merge_tokens
from .padding import pad_back

TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1}  # bfloat16 in torch; files are computed in float32
DEFAULT_TOLERANCE = 1e-4
COMPARED = 16  # calibration inputs


@dataclass(frozen=True)
class Verification:
    """`error` is the largest difference of any output, relative to the largest value of that output."""

    ok: bool
    error: float
    tolerance: float
    inputs: int
    padded: int
    reason: str = ""

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def output_error(dense: Graph, pruned: Graph, data: Any) -> dict[str, object]:
    """How far the pruned model's outputs are from the dense one's, on a few of the calibration inputs."""
    feed, of = some_inputs(dense, data)
    expected, got = (
        [as_array(out.float() if hasattr(out, "float") else out) for out in graph.probe([])(feed)[0]] for graph in (dense, pruned)
    )
    error = rms_apart(list(zip(expected, got, strict=True)))
    return {"error": error, "inputs": len(next(iter(feed.values()))), "of": of}


def some_inputs(graph: Graph, data: Any) -> tuple[dict[str, np.ndarray], str]:
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


def verify_files(dense: Path, pruned: Path, seed: int = 0) -> Verification:
    """Pad the pruned file back into the dense graph and run both through ONNX Runtime."""
    from toastc.graphs.onnx import OnnxGraph, load_model, plan_of, sample_inputs, sizes_for, upcast, write_model
    from toastc.graphs.onnx import session as ort

    small_model, model = load_model(pruned), load_model(dense)
    plan = plan_of(small_model, str(pruned))
    small, whole_graph = OnnxGraph(small_model), OnnxGraph(model)
    graph: Graph = whole_graph
    tolerance = tolerance_of(whole_graph)
    if other := sorted(small.float_types() - whole_graph.float_types()):
        reason = f"it computes in {', '.join(other)}, which the dense model does not; what is proven is the file without --dtype"
        return Verification(False, float("inf"), tolerance, 0, 0, reason)
    try:
        chosen = []
        if plan.merges:
            graph, merged = merge_tokens(graph, plan.merges, held=True)
            chosen = merged.choices
        sites = match(graph)[1]
        padded = pad_back(graph, sites, small, match(small)[1], plan)
        check_plan(plan, sites)
    except ToastcError as error:
        return Verification(False, float("inf"), tolerance, 0, 0, str(error))
    with scratch() as folder:
        if upcast.has_bfloat16(model):  # read back from the file, and computed in float32
            wide = folder / "pruned.onnx"
            write_model(upcast.upcast(load_model(pruned)), wide)
            pruned = wide
            upcast.upcast(model)
        feeds = [sample_inputs(model, sizes_for(model, large), seed) for large in sorted({False, bool(sizes_for(model))})]
        feeds = [{name: array for name, array in feed.items() if name not in chosen} for feed in feeds]
        chosen += hold_selections(graph, sites, plan)
        graph.finish()
        if chosen:  # what was chosen at run time is handed on to the dense graph, so that both choose the same
            pruned = exposed(pruned, chosen, folder / "exposed.onnx")
        try:
            expected = ort.run(pruned, feeds)
        except ToastcError:
            for feed in feeds:
                check_runs(dense, {name: array for name, array in feed.items() if name not in chosen})
            raise
        if chosen:
            whole = len(expected[0]) - len(chosen)
            feeds = [feed | dict(zip(chosen, outs[whole:], strict=True)) for feed, outs in zip(feeds, expected, strict=True)]
            expected = [outs[:whole] for outs in expected]
        file = folder / "padded.onnx"
        try:
            write_model(model, file, external=True)  # the runtime maps it, so that memory holds one copy
        except VerificationFailed as error:
            return Verification(False, float("inf"), tolerance, 0, padded, str(error))
        except OSError as error:
            room = f"{tempfile.gettempdir()}: no room for the model that proves it ({error.strerror or error})"
            raise ToastcError(f"{room}; set TMPDIR to another folder, or give --no-verify") from None
        got = ort.run(file, feeds)
    if [len(outs) for outs in expected] != [len(outs) for outs in got]:
        return Verification(False, float("inf"), tolerance, len(feeds), padded, "it has other outputs than the dense model")
    errors = [difference(b, a) for run_a, run_b in zip(expected, got, strict=True) for a, b in zip(run_a, run_b, strict=True)]
    worst = max(errors)
    reason = "" if worst <= tolerance else f"outputs differ by {worst:.2e} of their scale, allowed {tolerance:.0e}"
    return Verification(worst <= tolerance, worst, tolerance, len(feeds), padded, reason)


def check_runs(dense: Path, feed: Mapping[str, np.ndarray]) -> None:
    """Is it the fault of the file that was given? Those that write sizes down often say that any size may be."""
    from toastc.graphs.onnx import session as ort

    made = ort.session(dense, frugal=True)  # a file that can not even be loaded says so
    try:
        ort.run_session(made, dense, feed)
    except ToastcError as error:
        sizes = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in feed.items())
        raise ToastcError(
            f"{error}; it was given {sizes}, which its inputs allow: export it again, with these sizes fixed"
        ) from None


def exposed(file: Path, names: Sequence[str], to: Path) -> Path:
    """The file with inner tensors as further outputs."""
    from toastc.graphs.onnx import load_model, write_model

    model = load_model(file)
    values = {v.name: v for node in model.graph for v in node.outputs}
    model.graph.outputs.extend(values[name] for name in names)
    write_model(model, to, external=True)
    return to


def tolerance_of(graph: object) -> float:
    """By the coarsest float type among the outputs of the graph's linears."""
    from toastc.graphs.onnx import OnnxGraph

    assert isinstance(graph, OnnxGraph)
    return TOLERANCE["float16"] if "float16" in graph.float_types() else DEFAULT_TOLERANCE
