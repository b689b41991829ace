"""verify: the pruned file equals the dense file with the pruned weights, zero-filled, in its place.

f_dense(pad(W')) == f_pruned(W')     on random inputs, at two sizes of every free axis
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import inf
from pathlib import Path

import numpy as np
import onnx_ir as ir

from toastc.graphs import Value
from toastc.graphs.onnx import OnnxGraph, load_model, plan_of, sample_inputs, session, sizes_for, upcast, write_model
from toastc.plans.plan import check_plan
from toastc.system.errors import ToastcError, VerificationFailed
from toastc.system.files import scratch

from ..shrink.selections import hold_selections
from . import DEFAULT_TOLERANCE, TOLERANCE, Verification, furthest
from .prepare import padded_into


def verify_files(dense: Path, pruned: Path, seed: int = 0) -> Verification:
    """Pad the pruned file back into the dense graph and run both through ONNX Runtime."""
    small_model, model = load_model(pruned), load_model(dense)
    plan = plan_of(small_model, str(pruned))
    small, whole_graph = OnnxGraph(small_model), OnnxGraph(model)
    tolerance = TOLERANCE["float16"] if "float16" in whole_graph.float_types() else DEFAULT_TOLERANCE
    if other := sorted(small.float_types() - whole_graph.float_types()):
        reason = f"it computes in {', '.join(other)}, which the dense model does not; what is proven is the file without --dtype"
        return Verification.failed(reason, tolerance)
    try:
        graph, sites, padded, chosen = padded_into(whole_graph, small, plan)
        check_plan(plan, sites)
    except ToastcError as error:
        return Verification.failed(str(error), tolerance)
    with scratch() as folder, ThreadPoolExecutor(1) as beside:
        if upcast.has_bfloat16(model):  # read back from the file, and computed in float32
            wide = folder / "pruned.onnx"
            write_model(upcast.upcast(load_model(pruned)), wide)
            pruned = wide
            upcast.upcast(model)
        feeds = [sample_inputs(model, sizes_for(model, large), seed) for large in sorted({False, bool(sizes_for(model))})]
        feeds = [{name: array for name, array in feed.items() if name not in chosen} for feed in feeds]
        chosen += hold_selections(graph, sites, plan)
        graph.finish()
        zeros = given_as_inputs(model, [graph.operand(op, slot) for op, slot in padded.cut])
        written: Future[Path] = beside.submit(with_room, model, folder / "padded.onnx")  # while the pruned file runs
        if chosen:  # what was chosen at run time is handed on to the dense graph, so that both choose the same
            pruned = exposed(pruned, chosen, folder / "exposed.onnx")
        try:
            expected = session.run(pruned, feeds)
        except ToastcError:
            for feed in feeds:
                check_runs(dense, {name: array for name, array in feed.items() if name not in chosen})
            raise
        if chosen:
            whole = len(expected[0]) - len(chosen)
            feeds = [feed | dict(zip(chosen, outs[whole:], strict=True)) for feed, outs in zip(feeds, expected, strict=True)]
            expected = [outs[:whole] for outs in expected]
        try:
            file = written.result()
        except VerificationFailed as error:
            return Verification.failed(str(error), tolerance, padded.count)
        got = session.run(file, [*feeds, feeds[0] | zeros] if zeros else feeds)
        without = got.pop() if zeros else []
        if [len(outs) for outs in expected] != [len(outs) for outs in got]:
            return Verification.failed("it has other outputs than the dense model", tolerance, padded.count, len(feeds))
        worst = max(map(furthest, got, expected))
        blank = furthest(got[0], without) if zeros else inf
    return Verification.of(worst, tolerance, len(feeds), padded.count, blank)


def with_room(model: ir.Model, file: Path) -> Path:
    """The file, written so that the runtime can map it and memory holds one copy."""
    try:
        write_model(model, file, external=True)
    except OSError as error:
        room = f"{tempfile.gettempdir()}: no room for the model that proves it ({error.strerror or error})"
        raise ToastcError(f"{room}; set TMPDIR to another folder, or give --no-verify") from None
    return file


def given_as_inputs(model: ir.Model, weights: Sequence[Value]) -> dict[str, np.ndarray]:
    """Weights that may be given as inputs, and zeros to give: what the outputs are without them is what the proof can see."""
    zeros = {}
    for value in weights:
        assert isinstance(value, ir.Value) and value.name is not None and value.const_value is not None
        if value.name not in zeros:
            model.graph.inputs.append(value)
            tensor = value.const_value
            zeros[value.name] = np.zeros(tensor.shape.numpy(), tensor.dtype.numpy())
    return zeros


def check_runs(dense: Path, feed: Mapping[str, np.ndarray]) -> None:
    """Is it the fault of the file that was given? Those that write sizes down often say that any size may be."""

    made = session.session(dense, frugal=True)  # a file that can not even be loaded says so
    try:
        session.run_session(made, dense, feed)
    except ToastcError as error:
        sizes = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in feed.items())
        raise ToastcError(
            f"{error}; it was given {sizes}, which its inputs allow: export it again, with these sizes fixed"
        ) from None


def exposed(file: Path, names: Sequence[str], to: Path) -> Path:
    """The file with inner tensors as further outputs."""

    model = load_model(file)
    values = {v.name: v for node in model.graph for v in node.outputs}
    model.graph.outputs.extend(values[name] for name in names)
    write_model(model, to, external=True)
    return to
