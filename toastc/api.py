"""prune, inspect, verify, bench: what the command and other people's Python call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .calibration import Moments, Preprocess
from .compiler.forms import at_hand, blamed, is_named, is_torch, open_graph
from .compiler.measure import measure
from .compiler.result import Result
from .plans import ratios as ratio_file
from .plans.cost import Target
from .plans.merges import parse_merges
from .plans.plan import Plan
from .plans.targets import Deploy
from .report.data import reject_dicts, site_dict, widths_by_site
from .system.errors import ToastcError
from .system.files import check_targets, write_beside
from .system.progress import Tell, silent


def prune(
    model: Any,
    ratios: Any = None,
    *,
    target: str | float | Target | None = None,
    plan: Plan | str | Path | None = None,
    data: Any = None,
    images: int | None = None,
    preprocess: Preprocess | None = None,
    moments: Moments | str | Path | None = None,
    tokens: Any = None,
    allow: str | Sequence[str] | None = None,
    search: float | None = None,
    batch: int = 1,
    runtime: str = "portable",
    dtype: str | None = None,
    quantize: str | None = None,
    provider: str = "cpu",
    recipe: str = "default",
    passes: str | None = None,
    output: str | Path | None = None,
    plan_out: str | Path | None = None,
    report_out: str | Path | None = None,
    moments_out: str | Path | None = None,
    ratios_out: str | Path | None = None,
    example_inputs: Sequence[Any] | None = None,
    seed: int = 0,
    verify: bool = True,
    dry_run: bool = False,
    weights: str | None = None,
    command: str | None = None,
    tell: Tell = silent,
) -> Result:
    """Make a model smaller: `ratios` (a dict, a number, a path) say how much of every coupling is removed.

    `model` is a path to an ONNX file, an onnx ModelProto, an onnx_ir Model, an onnx_graphsurgeon Graph, or a
    torch nn.Module / ExportedProgram; or the name of a model, `timm:NAME` or `hf:NAME`, which
    is built and exported (`weights`: a file, or "random"; else its own). Instead of ratios,
    `target="macs=0.6"` keeps that share of the MACs, and
    `plan` replays a plan. `passes` spells a pipeline instead of a named recipe: `score-weights{by=l1},plan-ratios`.
    `tokens` merges tokens first, `"h4,v8"`: horizontally before block 4, vertically before block 8. With
    `allow="channels,tokens"` a target in MACs is met by both, as costs least; with `"channels"` by channels alone.
    With `search=5.0` the widths are refined for five minutes by the measured error of the pruned model. `target` may be
    `latency=0.6`: of the time of one batch of `batch` on this machine.
    `runtime` (ort-cpu, ort-cuda, tensorrt), `dtype` (fp16, bf16) and `quantize` (int8) say what the file becomes at the end.
    `output`, `plan_out` and `report_out` are files to write the model, the plan and the report's page to.
    The report says how it was asked for: `command`, or this call.
    """
    given = dict(locals())
    from .compiler.driver import Request, allowed
    from .passes import parse_passes
    from .passes import recipe as check_recipe
    from .report.evidence import as_called

    check_recipe(recipe)
    deploy = Deploy(runtime, dtype, quantize)
    if ratios is None and target is None and plan is None and (tokens is not None or deploy):
        ratios = {}
    if sum(x is not None for x in (ratios, target, plan)) != 1:
        raise ToastcError("give one of ratios, target and plan (or tokens alone)")
    request = Request(
        ratios=None if ratios is None else read_ratios(ratios).rounded(deploy.widths),
        target=None if target is None else Target.parse(target),
        plan=Plan.load(Path(plan)) if isinstance(plan, str | Path) else plan,
        recipe=passes or recipe,
        passes=parse_passes(passes) if passes else None,
        seed=seed,
        verify=verify,
        dry_run=dry_run,
        data=data,
        options={"limit": images, "preprocess": preprocess},
        moments=Moments.load(Path(moments)) if isinstance(moments, str | Path) else moments,
        keep_moments=moments_out is not None,
        search=search,
        batch=batch,
        provider=provider,
        tokens=parse_merges(tokens) if tokens is not None else (),
        deploy=deploy,
        command=command or as_called(prune, given),
        allow=allowed(allow),
    )
    by_products = [Path(p) for p in (plan_out, report_out, moments_out, ratios_out) if p is not None]
    targets = by_products if output is None else [Path(output), Path(f"{output}.data"), *by_products]
    check_targets(targets, [Path(p) for p in (model, weights, ratios, plan, data, moments) if isinstance(p, str | Path)])
    if is_torch(model) and deploy:
        raise ToastcError("for, dtype and quantize are of ONNX files; a module is for torch.compile")
    with at_hand(model, weights, tell) as (source, own):
        if preprocess is None:
            request = replace(request, options={**request.options, "preprocess": own})
        if is_torch(source):
            from .compiler.sources.module import compile_module

            result = compile_module(source, example_inputs, request, tell)
        else:
            from .compiler.sources.onnx import compile_any

            with blamed(source):
                result = compile_any(source, None if output is None else Path(output), targets, request, tell)
    if is_named(model):
        result = replace(result, report=replace(result.report, model=str(model)))
    if plan_out is not None:
        result.plan.save(Path(plan_out))
    if moments_out is not None and result.moments is not None:
        result.moments.save(Path(moments_out))
    if ratios_out is not None:
        with write_beside(Path(ratios_out)) as file:
            file.write_text(json.dumps(ratio_file.chosen(widths_by_site(result.report), result.plan.merges), indent=1) + "\n")
    if report_out is not None:
        from .report.page import write_page

        write_page(result.report.to_dict(), Path(report_out))
    return result


def export(name: str, output: str | Path, weights: str | None = None) -> dict[str, Any]:
    """A model that timm or transformers build, as an ONNX file: `timm:NAME` or `hf:NAME`."""
    from .compiler.sources.named import as_file
    from .graphs.onnx import OnnxGraph, is_external, load_model, staged, write_model

    check_targets([Path(output), Path(f"{output}.data")], [] if weights is None else [Path(weights)])
    with as_file(name, weights) as (path, _), staged(Path(output)) as file:
        model = load_model(path)
        macs, params = OnnxGraph(model).totals()
        write_model(model, file, is_external(model) or None)
    return {"model": name, "output": str(output), "macs": macs, "params": params}


def read_ratios(ratios: Any) -> ratio_file.Ratios:
    return ratio_file.read(Path(ratios)) if isinstance(ratios, str | Path) else ratio_file.parse(ratios)


def inspect(model: Any, *, example_inputs: Sequence[Any] | None = None) -> dict[str, Any]:
    """What can be shrunk and what not, as the data of `toastc inspect --json`."""
    from .passes.match import match

    with blamed(model):
        graph, name = open_graph(model, example_inputs)
        _, sites, rejects = match(graph)
        macs, params = graph.totals()
    return {
        "model": name,
        "sites": [site_dict(s) for s in sites],
        "rejects": reject_dicts(sites, rejects),
        "macs": macs,
        "params": params,
    }


def kernels(model: Any, *, example_inputs: Sequence[Any] | None = None) -> dict[str, Any]:
    """Which kernel every attention gets on a GPU, as the data of `toastc kernels --json`."""
    from .compiler.driver import kernels_of
    from .passes.match import match

    with blamed(model):
        graph, name = open_graph(model, example_inputs)
        return {"model": name, "kernels": list(kernels_of(graph, match(graph)[1], Plan()))}


def verify(dense: str | Path, pruned: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """Pad `pruned` back into `dense` and compare: the data of `toastc verify --json`."""
    from .passes.prove.files import verify_files

    with blamed(dense, pruned):
        found: dict[str, Any] = verify_files(Path(dense), Path(pruned), seed).to_dict()
    return found


def bench(
    dense: Any,
    pruned: Any,
    *,
    provider: str = "cpu",
    batches: Sequence[int] = (1, 8),
    threads: int = 0,
    seconds: float = 3.0,
    options: Mapping[str, str] | None = None,
    memory: bool = True,
    example_inputs: Sequence[Any] | None = None,
    compiled: bool = False,
    tell: Tell = silent,
) -> dict[str, Any]:
    """Time both models in turns: medians, spread, throughput, peak memory, and the gain against what the MACs promise.

    Two ONNX files, on ONNX Runtime (`provider` cpu, cuda or tensorrt, with the provider's own `options`); or two torch modules,
    where they are, on `example_inputs`, eagerly or, `compiled`, through inductor.
    """
    if is_torch(dense):
        from .timing.modules import bench_modules

        macs = tuple(open_graph(m, example_inputs)[0].totals()[0] for m in (dense, pruned))
        return bench_modules(dense, pruned, example_inputs, macs, batches, threads, seconds, compiled, tell)
    from .timing.files import bench_files

    return bench_files(Path(dense), Path(pruned), provider, batches, threads, seconds, tell, options, memory)


__all__ = ["Result", "bench", "export", "inspect", "kernels", "measure", "prune", "verify"]
