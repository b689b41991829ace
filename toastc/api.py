"""prune, inspect, verify, bench: what the command and other people's Python call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from .compiler.compile import compile
from .compiler.measure import measure
from .compiler.options import PYTHON, Options, signature, stated
from .compiler.request import Request
from .compiler.result import Result
from .compiler.sources import blame_file, open_source, room_of
from .graphs.onnx import OnnxGraph, is_external, load_model, staged, write_model
from .passes.match import match
from .passes.prove.files import verify_files
from .plans import ratios as ratio_file
from .plans.plan import Plan
from .report.data import widths_by_site
from .report.evidence import as_called, kernel_rows
from .report.page import write_page
from .report.reading import inspected
from .system.errors import NothingToPrune
from .system.files import check_targets, write_beside
from .system.progress import Tell, progress, silent
from .system.vocabulary import Inputs, Json, Model

__all__ = ["Result", "bench", "export", "inspect", "kernels", "measure", "prune", "verify"]
PATIENCE = 5.0  # seconds of silence where nobody watches: many calls are shorter


def prune(model: Model, ratios: Any = None, **words: Any) -> Result:
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
    A torch module comes back as it is, only smaller: its class, methods, hooks and names, with narrower linears
    inside; `as_graph=True` gives a graph of it instead. Progress is shown on a terminal and in notebooks, unless `quiet`;
    `tell` is called instead, with the name of each stage and how much of it is done.
    `runtime` (ort-cpu, ort-cuda, tensorrt, openvino), `dtype` (fp16, bf16) and `quantize` (int8) say what the file becomes at the
    end. `output`, `plan_out` and `report_out` are files to write the model, the plan and the report's page to.
    The report says how it was asked for: `command`, or this call. `help(toastc.prune)` lists all words;
    `compiler.options.Options` explains each.
    """
    given = prune.__signature__.bind(model, ratios, **words)  # type: ignore[attr-defined]
    given.apply_defaults()
    said = dict(given.arguments)
    options = stated({name: value for name, value in said.items() if name != "model"}).own
    options = replace(options, command=options.command or as_called(prune, said))
    request = Request.of(options)
    inputs = (model, options.weights, options.ratios, options.plan, options.data, options.moments)
    check_targets(options.targets, [Path(p) for p in inputs if isinstance(p, str | Path)])
    told = progress(options.quiet, PATIENCE) if options.tell is None else nullcontext(options.tell)
    with told as tell, open_source(model, options, tell) as (source, own):
        result = compile(source, replace(request, preprocess=request.preprocess or own), tell)
    if not result.changed and options.output is not None:
        raise NothingToPrune("the ratios remove nothing: every width stays as it is; nothing was written")
    write_by_products(result, options)
    return result


prune.__signature__ = signature(PYTHON, "ratios")  # type: ignore[attr-defined]


def write_by_products(result: Result, options: Options) -> None:
    if options.plan_out is not None:
        result.plan.save(Path(options.plan_out))
    if options.moments_out is not None and result.moments is not None:
        result.moments.save(Path(options.moments_out))
    if options.ratios_out is not None:
        with write_beside(Path(options.ratios_out)) as file:
            file.write_text(json.dumps(ratio_file.ratios_of(widths_by_site(result.report), result.plan.merges), indent=1) + "\n")
    if options.report_out is not None:
        write_page(result.report.to_dict(), Path(options.report_out))


def export(name: str, output: str | Path, weights: str | None = None) -> Json:
    """A model that timm or transformers build, as an ONNX file: `timm:NAME` or `hf:NAME`."""
    check_targets([Path(output), Path(f"{output}.data")], [] if weights is None else [Path(weights)])
    with room_of(name).as_file(name, weights) as (path, _), staged(Path(output)) as file:
        model = load_model(path)
        macs, params = OnnxGraph(model).totals()
        write_model(model, file, is_external(model) or None)
    return {"model": name, "output": str(output), "macs": macs, "params": params}


def inspect(model: Model, *, example_inputs: Inputs | None = None) -> Json:
    """What can be shrunk and what not, as the data of `toastc inspect --json`."""
    with blame_file(model):
        return inspected(*room_of(model).read(model, example_inputs))


def kernels(model: Model, *, example_inputs: Inputs | None = None) -> Json:
    """Which kernel every attention gets on a GPU, as the data of `toastc kernels --json`."""
    with blame_file(model):
        graph, name = room_of(model).read(model, example_inputs)
        return {"model": name, "kernels": list(kernel_rows(graph, match(graph)[1], Plan()))}


def verify(dense: str | Path, pruned: str | Path, *, seed: int = 0) -> Json:
    """Pad `pruned` back into `dense` and compare: the data of `toastc verify --json`."""
    with blame_file(dense, pruned):
        found: Json = verify_files(Path(dense), Path(pruned), seed).to_dict()
    return found


def bench(
    dense: Model,
    pruned: Model,
    *,
    provider: str = "cpu",
    batches: Sequence[int] = (1, 8),
    threads: int = 0,
    seconds: float = 3.0,
    options: Mapping[str, str] | None = None,
    memory: bool = True,
    example_inputs: Inputs | None = None,
    compiled: bool = False,
    tell: Tell = silent,
) -> Json:
    """Time both models in turns: medians, spread, throughput, peak memory, and the gain against what the MACs promise.

    Two ONNX files, on ONNX Runtime (`provider` cpu, cuda or tensorrt, with the provider's own `options`); or two torch modules,
    where they are, on `example_inputs`, eagerly or, `compiled`, through inductor.
    """
    found: Json = room_of(dense).bench(
        dense, pruned, provider=provider, batches=batches, threads=threads, seconds=seconds, options=options, memory=memory,
        example_inputs=example_inputs, compiled=compiled, tell=tell,
    )  # fmt: skip
    return found
