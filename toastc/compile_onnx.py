"""The whole path for ONNX: match -> score -> plan -> shrink -> write -> verify."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from .calibration import Moments, Synthetic, open_data
from .cost import Target, saved_macs, saved_params, uniform_ratios
from .errors import NoChange, NothingToPrune, ToastcError, VerificationFailed
from .graphs import Graph
from .graphs.onnx import OnnxGraph, embed_plan, file_bytes, is_external, load_model, staged, write_model
from .pipeline import Pass, State, run
from .plan import Plan, check_plan
from .progress import Tell
from .ratios import Ratios, narrowed
from .report.data import Report, Size, coupling_rows
from .result import Result
from .sites import Reject
from .tokens import Merge

HELD_OUT = 4  # batches that a search is judged by


@dataclass(frozen=True)
class Request:
    """What to do with a model: ratios, or a target, or a plan to replay."""

    ratios: Ratios | None = None
    target: Target | None = None
    plan: Plan | None = None
    recipe: str = "default"
    passes: tuple[Pass, ...] | None = None  # instead of the recipe's
    seed: int = 0
    verify: bool = True
    dry_run: bool = False
    data: Any = None  # what to calibrate on
    options: Mapping[str, Any] = field(default_factory=dict)  # of the data: limit, batch, preprocess
    moments: Moments | None = None
    search: float | None = None  # minutes
    batch: int = 1  # of a latency
    provider: str = "cpu"  # where an ONNX model is watched
    tokens: tuple[Merge, ...] = ()

    @property
    def merges(self) -> tuple[Merge, ...]:
        if self.plan is not None:
            return self.plan.merges
        return (*(self.ratios.tokens if self.ratios is not None else ()), *self.tokens)


def begun(graph: Graph, request: Request, macs: int) -> tuple[State, Request]:
    """The graph with its tokens merged, and what is left to do: a budget in MACs is of the dense model's."""
    if not request.merges:
        return State(graph, request.ratios), request
    from .passes.merge_tokens import merge_tokens

    graph, merged = merge_tokens(graph, request.merges)
    notes = merged.notes
    left = graph.totals()[0] / macs
    notes.append(f"merged tokens leave {left:.3f} of the MACs")
    target = request.target
    if target is not None and target.what == "latency":
        raise ToastcError("target: latency is not told with merged tokens; give macs or params")
    if target is not None and target.what == "macs":
        if target.keep < left:
            target = Target("macs", target.keep / left)
        else:
            target, request = None, replace(request, ratios=Ratios())
        request = replace(request, target=target)
    return State(graph, request.ratios, notes=tuple(notes)), request


def choose(state: State, request: Request, total: int, tell: Tell) -> tuple[State, dict[str, float]]:
    """Run matching, scoring and planning; or matching alone where a plan is given."""
    from .passes import recipe, tuned

    inputs = state.graph.input_sizes()
    data = request.data is not None or request.moments is not None
    first, *rest = tuned(request.passes or recipe(request.recipe, data, Synthetic.fits(inputs)), request.search, request.batch)
    state = replace(state, held_out=0 if request.search is None else HELD_OUT)
    state = replace(state, seed=request.seed, moments=request.moments, target=request.target, tell=tell)
    if request.data is not None:
        state = replace(state, data=open_data(request.data, inputs, seed=request.seed, **request.options))
    tell(first.name)
    state, seconds = run([first], state)
    if not state.sites:
        raise NothingToPrune(nothing_found(state.rejects))
    if request.plan is not None:
        check_plan(request.plan, state.sites)
        return replace(state, plan=request.plan), seconds
    if request.ratios is not None and not narrowed(request.ratios, state.sites):
        return replace(state, plan=Plan(merges=request.merges)), seconds
    if request.target is not None and not any(step.name == "allocate-widths" for step in rest):
        chosen = any(step.name == "plan-selections" for step in rest)
        state = replace(state, ratios=uniform_ratios(state.sites, total, request.target, chosen=chosen))
    for step in rest:
        tell(step.name)
        state, took = run([step], state)
        seconds |= took
    return replace(state, plan=replace(state.plan, merges=request.merges)), seconds


def nothing_found(rejects: Sequence[Reject]) -> str:
    why = f"; {rejects[0].node}: {rejects[0].reason}" if rejects else ""
    return f"no attention and no FFN was found that can be shrunk{why}"


def compile_onnx(model: ir.Model, dense: Path, output: Path | None, request: Request, name: str, tell: Tell) -> Result:
    """Shrinks `model` in place and writes it to `output`. `dense` is the file it came from, for verification."""
    start = time.perf_counter()
    graph = OnnxGraph(model, request.provider)
    macs, params = graph.totals()
    external = is_external(model) or None  # the output takes the form of the input
    state, request = begun(graph, request, macs)
    reading = time.perf_counter() - start
    state, seconds = choose(state, request, macs, tell)
    sites, plan = state.sites, state.plan
    rows, rejects = coupling_rows(sites, plan), state.rejects
    before = Size(macs, params, file_bytes(model, dense))
    if not plan:
        raise NoChange(Report(name, request.recipe, before, before, rows, rejects))
    after_macs = state.graph.totals()[0] - saved_macs(sites, plan)
    seconds = {"read": reading} | seconds
    settings = {"seed": request.seed, "recipe": request.recipe}
    if request.dry_run:
        after = Size(after_macs, params - saved_params(sites, plan), None)
        notes = (*state.notes, "dry run: nothing was written")
        report = Report(name, request.recipe, before, after, rows, rejects, seconds, None, notes, settings)
        return Result(model, plan, report, state.moments)
    from .passes import Shrink

    tell("shrink")
    state, took = run([Shrink()], state)
    seconds |= took
    embed_plan(model, plan)
    after_params = OnnxGraph.count_parameters(model)
    verified: dict[str, Any] | None = None
    with tempfile.TemporaryDirectory(prefix="toastc-") as scratch:
        target = output if output is not None else Path(scratch) / "pruned.onnx"
        with staged(target) as file:
            tell("write")
            clock = time.perf_counter()
            write_model(model, file, external)
            seconds["write"] = time.perf_counter() - clock
            if request.verify:
                from .passes.verify import verify_files

                tell("verify")
                clock = time.perf_counter()
                result = verify_files(dense, file, request.seed)
                seconds["verify"] = time.perf_counter() - clock
                verified = result.to_dict()
                if not result.ok:
                    raise VerificationFailed(f"{name}: verification failed: {result.reason}; nothing was written")
            size = sum(part.stat().st_size for part in file.parent.iterdir())
        if output is None:
            model = load_model(target)
            for value in model.graph.initializers.values():
                if isinstance(value.const_value, ir.ExternalTensor):
                    value.const_value = ir.Tensor(value.const_value.numpy().copy(), name=value.name)
    after = Size(after_macs, after_params, size)
    report = Report(name, request.recipe, before, after, rows, rejects, seconds, verified, state.notes, settings)
    return Result(model, plan, report, state.moments)
