"""Graph variants of the zoo's models: exporters, opsets, optimizers, each checked against the torch model.

    python tools/zoo_exports.py --small --out /tmp/zoo --family deit_tiny --variant dynamo20 ort

A variant is a recipe with an optional `-dyn` (dynamic batch, and sequence where the family has one):

    dynamo18 dynamo20 dynamo23 dynamo24    torch.onnx.export, the torch.export-based exporter
    ts17                                   torch.onnx.export(dynamo=False), the tracing one
    onnxslim onnxsim ort ort18             post-processing of dynamo20 (ort18: of dynamo18)
    export compile                         torch.fx: torch.export, and the graphs Dynamo hands to a backend

Static graphs are exported at batch 1, dynamic ones at batch 2 and checked at batch 3. Post-processing starts from the
dynamo file in the same folder, if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import logging
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import onnxsim
import onnxslim
import torch
from onnxscript.rewriter.ort_fusions import optimize_for_ort
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.onnx._internal.exporter._registration import ONNXRegistry
from zoo_models import FAMILIES, Family

Axes = Mapping[str, Mapping[int, str]]  # input -> axis -> name of the dimension
TOLERANCE = 1e-4  # largest error over the largest output; more is a wrong export
DYNAMO = {f"dynamo{opset}": opset for opset in (18, 20, 23, 24)}
POST = {"onnxslim": "dynamo20", "onnxsim": "dynamo20", "ort": "dynamo20", "ort18": "dynamo18"}
VARIANTS = [name + suffix for name in (*DYNAMO, "ts17", *POST, "export", "compile") for suffix in ("", "-dyn")]
LARGEST = 512  # any dynamic dimension; the position table of BERT ends there
INLINE_LIMIT = 1 << 30  # bytes of weights; larger models get their weights in a file of their own
# Made anew for every export, torch's table of operators takes a third of the time that a small model needs.
ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No logging, warnings or prints of Python or C++; no gradients; attention written out, as torch.export sees it."""
    saved = os.dup(1), os.dup(2)
    logging.disable(logging.CRITICAL)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with open(os.devnull, "w") as sink, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                yield
    finally:
        for number, descriptor in enumerate(saved, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        logging.disable(logging.NOTSET)


def dynamic_axes(family: Family, inputs: Mapping[str, Tensor]) -> Axes:
    """The family's dynamic axes for every input, by the names its exported graph will have."""
    return {name: {axis: label for axis, label in family.axes.items() if axis < t.ndim} for name, t in inputs.items()}


def dynamic_shapes(axes: Axes) -> tuple[dict[int, object], ...]:
    """The same for torch.export: one entry an input, equal labels being the same dimension."""
    labels = {label for known in axes.values() for label in known.values()}
    dims = {label: torch.export.Dim(label, min=2, max=LARGEST) for label in labels}
    return tuple({axis: dims[label] for axis, label in known.items()} for known in axes.values())


def export_onnx(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    path: Path,
    *,
    exporter: str = "dynamo",
    opset: int = 20,
    dynamic: Axes | None = None,
) -> Path:
    """Write `model` as ONNX. `dynamic` maps an input to its dynamic axes and their names."""
    args, results = tuple(inputs.values()), outputs_of(model, inputs)
    names = {"input_names": list(inputs), "output_names": [f"output{i}" for i in range(len(results))]}
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    with quiet():
        if exporter == "dynamo":
            shapes = {"dynamic_shapes": dynamic_shapes(dynamic)} if dynamic else {}
            options = {"external_data": weights > INLINE_LIMIT, "verbose": False, "opset_version": opset}
            torch.onnx.export(model, args, str(path), dynamo=True, **options, **names, **shapes)
        else:
            every = {**dynamic, **{n: {} for n in names["output_names"]}} if dynamic else None
            options = {"dynamo": False, "opset_version": opset, "dynamic_axes": every, **names}
            try:
                torch.onnx.export(model, args, str(path), **options)
            except TypeError:  # timm's EVA under the tracer: scaled_dot_product_attention gets a traced is_causal
                torch.onnx.export(unfused(model), args, str(path), **options)
    return path


def unfused(model: nn.Module) -> nn.Module:
    """A copy in which timm's attentions are written out instead of calling scaled_dot_product_attention."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


def postprocess(tool: str, source: Path, path: Path) -> Path:
    """Run onnxslim, onnxsim or optimize_for_ort over one ONNX file."""
    with quiet():
        if tool == "onnxslim":
            onnxslim.slim(str(source), str(path))
        elif tool == "onnxsim":
            simple, valid = onnxsim.simplify(onnx.load(source))
            if not valid:
                raise ValueError("onnxsim's own check failed")
            onnx.save(simple, path)
        else:
            ir.save(optimize_for_ort(ir.load(source))[0], path)
    return path


def export_fx(model: nn.Module, inputs: Mapping[str, Tensor], dynamic: Axes | None = None) -> ExportedProgram:
    """What torch.export makes of the model; `.module()` of it runs."""
    with quiet():
        shapes = dynamic_shapes(dynamic) if dynamic else None
        return torch.export.export(model, tuple(inputs.values()), dynamic_shapes=shapes)


def capture_compiled(
    model: nn.Module, inputs: Mapping[str, Tensor], dynamic: Axes | None = None
) -> tuple[list[fx.GraphModule], list[Tensor]]:
    """The graphs that Dynamo hands to a backend inside torch.compile, and what the compiled model returned."""
    graphs: list[fx.GraphModule] = []

    def record(graph: fx.GraphModule, _: list[Tensor]) -> fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    with quiet():
        for name, tensor in inputs.items():
            for axis in (dynamic or {}).get(name, {}):
                torch._dynamo.mark_dynamic(tensor, axis)
        found = torch.compile(model, backend=record, dynamic=None if dynamic else False)(*inputs.values())
    return graphs, flat(found)


def flat(found: object) -> list[Tensor]:
    """A model's result as a list."""
    return [found] if isinstance(found, Tensor) else list(found)  # type: ignore[call-overload]


def outputs_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    with quiet():
        return flat(model(*inputs.values()))


def run_onnx(path: Path, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The outputs of ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    with quiet():
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feeds = {node.name: inputs[node.name].numpy() for node in session.get_inputs()}
        return [torch.from_numpy(np.asarray(a)) for a in session.run(None, feeds)]


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest absolute error over the largest absolute value, of the worst output."""
    if [a.shape for a in found] != [b.shape for b in wanted]:
        return float("inf")
    return float(torch.stack([(a - b).abs().max() / b.abs().max() for a, b in zip(found, wanted, strict=True)]).max())


def make_variant(family: Family, model: nn.Module, variant: str, out: Path, full: bool = False) -> float:
    """Produce one variant of a built model, in `out` where it is a file; the error of its outputs."""
    recipe, is_dynamic = variant.removesuffix("-dyn"), variant.endswith("-dyn")
    torch.manual_seed(0)
    sample = family.inputs(full, 2 if is_dynamic else 1)
    test = family.inputs(full, 3 if is_dynamic else 1)
    axes = dynamic_axes(family, sample) if is_dynamic else None
    for name, known in (axes or {}).items():
        for axis in (axis for axis, label in known.items() if label != "batch"):
            test[name] = test[name].narrow(axis, 1, test[name].shape[axis] - 1)
    wanted = outputs_of(model, test)
    if recipe in ("export", "compile"):  # what is compiled will be compared with what is exported and pruned
        exported = error(outputs_of(export_fx(model, sample, axes).module(), test), wanted)
        return exported if recipe == "export" else error(capture_compiled(model, test, axes)[1], wanted)
    path = out / f"{family.name}.{variant}.onnx"
    path.unlink(missing_ok=True)
    if recipe in POST:
        source = out / f"{family.name}.{POST[recipe]}{'-dyn' if is_dynamic else ''}.onnx"
        if not source.exists():
            export_onnx(model, sample, source, opset=DYNAMO[POST[recipe]], dynamic=axes)
        postprocess(recipe, source, path)
    elif recipe == "ts17":
        export_onnx(model, sample, path, exporter="torchscript", opset=17, dynamic=axes)
    else:
        export_onnx(model, sample, path, opset=DYNAMO[recipe], dynamic=axes)
    return error(run_onnx(path, test), wanted)


def first_line(problem: BaseException) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(problem)).strip()
    return f"{type(problem).__name__}: {text.splitlines()[0] if text else ''}"[:200]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--small", action="store_true", help="the two-block models")
    size.add_argument("--full", action="store_true", help="the real architectures")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "zoo")
    parser.add_argument("--family", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), metavar="NAME")
    parser.add_argument("--variant", nargs="+", default=VARIANTS, choices=VARIANTS, metavar="NAME")
    args, bad = parser.parse_args(), 0
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in args.family:
        with quiet():
            model = FAMILIES[name].full() if args.full else FAMILIES[name].small()
        for variant in args.variant:
            began = time.perf_counter()
            try:
                worst = make_variant(FAMILIES[name], model, variant, args.out, args.full)
                verdict = f"{'ok' if worst <= TOLERANCE else 'WRONG'} {worst:.1e}"
            except Exception as problem:  # noqa: BLE001  an exporter may raise anything: it is a finding, not our failure
                verdict = f"FAILED {first_line(problem)}"
            bad += not verdict.startswith("ok")
            print(f"{name}.{variant}  {time.perf_counter() - began:.1f}s  {verdict}", flush=True)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
