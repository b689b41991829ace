"""The whole path for ONNX: merge -> match -> score -> plan -> shrink -> write -> verify."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...graphs.onnx import (
    OnnxGraph,
    embed_plan,
    external_files,
    file_bytes,
    is_external,
    load_model,
    prepare,
    staged,
    write_model,
)
from ...passes.state import run
from ...plans.plan import Plan
from ...report import Size
from ...system.errors import NoChange, VerificationFailed
from ...system.files import check_targets, scratch
from ...system.progress import Tell
from ..deploy import compare, deploy
from ..driver import Request, begun, choose, planned
from ..forms import as_ir, from_ir
from ..result import Result


def compile_onnx(model: ir.Model, dense: Path, output: Path | None, request: Request, name: str, tell: Tell) -> Result:
    """Shrinks `model` in place and writes it to `output`. `dense` is the file it came from, for verification."""
    start = time.perf_counter()
    graph = OnnxGraph(model, request.provider)
    macs, params = graph.totals()
    external = is_external(model) or None  # the output takes the form of the input
    reading = time.perf_counter() - start
    state, request = begun(graph, request, macs, lambda: OnnxGraph(load_model(dense), request.provider), tell)
    model = state.graph.model  # type: ignore[attr-defined]
    state, seconds = choose(state, request, macs, tell)
    plan, seconds = state.plan, {"read": reading} | seconds
    before = Size(macs, params, file_bytes(model, dense))
    report = planned(name, request, state, before, seconds, state.sites)
    if not plan and not request.deploy:
        raise NoChange(replace(report, after=before))
    if request.dry_run:
        report = replace(report, notes=(*report.notes, "dry run: no model was written"))
        return Result(model, plan, report, state.moments)
    from ...passes import Shrink

    state, took = run([Shrink()], state)
    seconds |= took
    embed_plan(model, plan, report.after.macs)
    after_params = OnnxGraph.count_parameters(model)
    verified: dict[str, Any] | None = None
    deployed, measured, notes = None, None, state.notes
    with scratch() as folder:
        target = output if output is not None else folder / "pruned.onnx"
        with staged(target) as file:
            tell("write")
            clock = time.perf_counter()
            proven = folder / "proven.onnx" if request.deploy else file
            write_model(model, proven, external)
            seconds["write"] = time.perf_counter() - clock
            if request.verify:
                from ...passes.prove.files import output_error, verify_files

                tell("verify")
                clock = time.perf_counter()
                result = verify_files(dense, proven, request.seed)
                seconds["verify"] = time.perf_counter() - clock
                verified = result.to_dict()
                if not result.ok:
                    raise VerificationFailed(f"{name}: verification failed: {result.reason}; nothing was written")
                if state.data is not None:
                    graphs = (OnnxGraph(load_model(path), request.provider) for path in (dense, proven))
                    measured = output_error(*graphs, state.data)
            if request.deploy:
                clock = time.perf_counter()
                made = deploy(proven, file, request.deploy, state.data, external, request.seed, tell)
                if request.verify:
                    tell("compare")
                    made = compare(proven, file, made, state.data, request.seed)
                seconds["deploy"] = time.perf_counter() - clock
                deployed, notes = made.to_dict(), (*notes, *made.notes)
            size = sum(part.stat().st_size for part in file.parent.iterdir())
        if output is None:
            model = load_model(target)
            for value in model.graph.initializers.values():
                if isinstance(value.const_value, ir.ExternalTensor):
                    value.const_value = ir.Tensor(value.const_value.numpy().copy(), name=value.name)
    report = replace(
        report, after=Size(report.after.macs, after_params, size), seconds=seconds, verified=verified, notes=notes,
        deployed=deployed, measured=measured,
    )  # fmt: skip
    return Result(model, plan, report, state.moments)


def compile_any(model: Any, output: Path | None, targets: Sequence[Path], request: Request, tell: Tell) -> Result:
    """A file, or a model in memory, which becomes a file for the while. `targets` are what the caller will write."""
    if isinstance(model, str | Path):
        path = Path(model)
        tell("read")
        loaded = load_model(path)
        check_targets(targets, external_files(loaded))
        try:
            made = compile_onnx(loaded, path, output, request, str(path), tell)
        except NoChange as same:
            if output is not None:
                raise
            import onnx

            return Result(onnx.load(path), Plan(), same.report)
        return replace(made, model=None if output is not None or request.dry_run else ir.to_proto(made.model))
    kind, source = as_ir(model)
    with scratch() as folder:
        dense = folder / "dense.onnx"
        write_model(prepare(source, "model"), dense)
        try:
            made = compile_onnx(load_model(dense), dense, output, request, source.graph.name or "model", tell)
        except NoChange as same:
            if output is not None:
                raise
            return Result(model, Plan(), same.report)
        return replace(made, model=from_ir(kind, made.model))
