"""A proven file becomes one for a runtime: fused nodes, half floats, 8-bit numbers.

The file is read, changed and written to another; what came out is run beside it, and how far the two are apart is told. Fused
nodes have to say the same; fewer bits never do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..graphs.onnx import (
    OnnxGraph,
    fuse_for_runtime,
    load_model,
    sample_inputs,
    session,
    sizes_for,
    to_half,
    upcast,
    write_model,
)
from ..passes.deploy.fuse import fuse_attention
from ..passes.deploy.quantize import Quantize
from ..passes.prove import difference, rms_apart, some_inputs
from ..passes.state import State, run
from ..plans.targets import Deploy
from ..system.errors import ToastcError, VerificationFailed
from ..system.files import scratch
from ..system.progress import Tell
from ..system.vocabulary import Model

REWRITES = {"ort": fuse_for_runtime}  # what a runtime's row may name
ALIKE = 1e-4  # of the outputs' scale: what fused nodes may differ by


@dataclass(frozen=True)
class Deployed:
    """`error`: the root mean square difference of the outputs by their own; `worst`: the largest, by their scale."""

    runtime: str
    dtype: str
    attentions: int  # that are one node
    notes: tuple[str, ...] = ()
    error: float | None = None  # None: not compared
    worst: float | None = None
    inputs: int = 0
    of: str = ""  # the inputs that were compared

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def deploy(proven: Path, target: Path, wanted: Deploy, data: Any, external: bool | None, seed: int, tell: Tell) -> Deployed:
    """Writes the file; what it says is for `compare` to find out."""

    graph: Any = OnnxGraph(load_model(proven))
    notes: list[str] = []
    count = sum(op.attention is not None for op in graph.ops)
    if wanted.fused:
        tell("fuse")
        graph, fused = fuse_attention(graph)
        count = fused.count
        notes += [f"not fused: {reason}" for reason in fused.left]
    if wanted.quantize:
        if half := graph.float_types() & {"float16", "bfloat16"}:
            raise ToastcError(f"quantize: the model computes in {half.pop()}; give the float32 one")
        state = State(graph, data=data, seed=seed, tell=tell)
        state, _ = run([Quantize(symmetric=wanted.row.symmetric)], state)
        graph, notes = state.graph, [*notes, *state.notes]
    model = graph.model
    if wanted.row.rewrite:
        model, why = REWRITES[wanted.row.rewrite](graph)
        notes += why
    if wanted.dtype:
        tell("dtype")
        kept = to_half(model, wanted.dtype)
        notes.append(f"{wanted.dtype}: {kept} of {len(model.graph)} nodes stay float32" if kept else f"{wanted.dtype} throughout")
    write_model(model, target, external)
    return Deployed(wanted.runtime, wanted.quantize or wanted.dtype or "fp32", count, tuple(notes))


def compare(proven: Path, made: Path, what: Deployed, data: Any, seed: int) -> Deployed:
    """Run both; fused nodes that say something else are an error, and so is what is no number any more."""
    feeds, of = inputs_for(load_model(proven), data, seed)
    error, worst = apart(proven, made, feeds, wide=what.dtype == "bf16")
    if what.dtype == "fp32" and not worst <= ALIKE:
        far = f"fused nodes differ by {worst:.1e} of the outputs' scale, allowed {ALIKE:.0e}"
        raise VerificationFailed(f"{far}; nothing was written")
    if not np.isfinite(error):
        raise VerificationFailed(f"{what.dtype}: the outputs are not numbers any more; nothing was written")
    inputs = sum(len(next(iter(feed.values()))) for feed in feeds)
    return replace(what, error=error, worst=worst, inputs=inputs, of=of)


def inputs_for(model: Model, data: Any, seed: int) -> tuple[list[Mapping[str, np.ndarray]], str]:
    """Calibration inputs, or random ones of two sizes."""
    if data is None:
        sizes = [sizes_for(model, large) for large in sorted({False, bool(sizes_for(model))})]
        return [sample_inputs(model, s, seed) for s in sizes], "random inputs"

    feed, of = some_inputs(OnnxGraph(model), data)
    return [feed], of


def apart(proven: Path, made: Path, feeds: list[Mapping[str, np.ndarray]], wide: bool) -> tuple[float, float]:

    with scratch() as folder:
        if wide:  # kernels on the CPU know no bfloat16: its numbers, in float32 arithmetic
            model = upcast.upcast(load_model(made))
            made = folder / "wide.onnx"
            write_model(model, made)
        runs = zip(session.run(proven, feeds), session.run(made, feeds), strict=True)
        pairs = [pair for a, b in runs for pair in zip(a, b, strict=True)]
    return rms_apart(pairs), max(difference(a, b) for a, b in pairs)
