"""ONNX files, and ONNX models in memory, which become files for the while."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from ...calibration import Preprocess
from ...graphs.onnx import (
    OnnxGraph,
    embed_plan,
    external_files,
    file_bytes,
    is_external,
    is_quantised,
    load_model,
    prepare,
    sample_inputs,
    session,
    sizes_for,
    staged,
    write_model,
)
from ...graphs.onnx.files import read_model
from ...graphs.onnx.older import OLDEST, is_old, opset_of
from ...passes.prove import DEFAULT_TOLERANCE, Verification, furthest, rms_apart
from ...passes.prove.files import verify_files
from ...passes.state import State
from ...plans.cost import saved_macs
from ...plans.plan import Plan
from ...plans.sites import Site
from ...report.data import Size
from ...system.errors import ToastcError
from ...system.files import check_targets, scratch
from ...system.progress import Tell
from ...system.vocabulary import Inputs, Json, Model
from ...timing.files import bench_files
from ..deploy import Deployed, compare, deploy
from ..options import Options
from ..request import Request
from . import blame_file


@dataclass
class OnnxSource:
    """`given` is what the caller had: a path, or a model in memory that was written to `file` for the while; `loaded` is what
    of it was read before, and is opened first.
    """

    given: Model
    file: Path
    name: str
    output: Path | None
    provider: str
    loaded: ir.Model | None = None
    notes: tuple[str, ...] = ()
    opening = "read"
    consequence = "; nothing was written"
    leaves_out = True

    def files(self) -> list[Path]:
        return [self.file, *external_files(load_model(self.file))] if isinstance(self.given, str | Path) else []

    def open(self) -> OnnxGraph:
        loaded, self.loaded = self.loaded, None
        return OnnxGraph(load_model(self.file) if loaded is None else loaded, self.provider)

    def size(self, graph: Any) -> Size:
        self.external = is_external(graph.model) or None  # the output takes the form of the input
        macs, params = graph.totals()
        return Size(macs, params, file_bytes(graph.model, self.file))

    def single_nodes(self, sites: Sequence[Site]) -> Sequence[Site]:
        return sites

    def unchanged(self) -> Any:
        if self.output is not None:
            return None
        return onnx.load(self.given) if isinstance(self.given, str | Path) else self.given

    def unfinished(self, state: State) -> Any:
        return None if isinstance(self.given, str | Path) else in_form_of(self.given, state.graph.model)

    @contextlib.contextmanager
    def written(self, state: State, request: Request, seconds: dict[str, float], tell: Tell) -> Iterator[MadeFile]:
        """A file beside the output, which takes its place at the end; without one, a model in memory."""
        model: ir.Model = state.graph.model
        embed_plan(model, state.plan, state.graph.totals()[0] - saved_macs(state.sites, state.plan))
        with scratch() as folder:
            target = self.output if self.output is not None else folder / "pruned.onnx"
            with staged(target) as file:
                tell("write")
                start = time.perf_counter()
                proven = folder / "proven.onnx" if request.deploy else file
                write_model(model, proven, self.external)
                seconds["write"] = time.perf_counter() - start
                made = MadeFile(self, proven, file, OnnxGraph.count_parameters(model), notes=self.notes)
                yield made
            made.model = self.delivered(target)

    def delivered(self, target: Path) -> Any:
        """What the caller gets: nothing but the file, where there is to be one and a path was given."""
        if self.output is not None and isinstance(self.given, str | Path):
            return None
        model = load_model(target)
        for value in model.graph.initializers.values() if self.output is None else ():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.Tensor(value.const_value.numpy().copy(), name=value.name)
        return in_form_of(self.given, model)


@dataclass
class MadeFile:
    source: OnnxSource
    proven: Path
    file: Path
    params: int
    model: Model = None
    notes: tuple[str, ...] = ()

    def prove(self, plan: Plan, seed: int) -> Verification:
        return verify_files(self.source.file, self.proven, seed)

    def graph(self) -> OnnxGraph:
        return OnnxGraph(load_model(self.proven), self.source.provider)

    def deploy(self, request: Request, data: Any, tell: Tell) -> Deployed:
        seed = request.options.seed
        made = deploy(self.proven, self.file, request.deploy, data, self.source.external, seed, tell)
        if not request.options.verify:
            return made
        tell("compare")
        return compare(self.proven, self.file, made, data, seed)

    def size(self, macs: int) -> Size:
        return Size(macs, self.params, sum(part.stat().st_size for part in self.file.parent.iterdir()))


def first_read(file: Path, options: Options) -> tuple[ir.Model, tuple[str, ...]]:
    """And what is to be said of it."""
    asis = read_model(file)
    form = opset_of(asis), is_quantised(asis)
    model = prepare(asis, str(file))
    check_targets(options.targets, external_files(model))
    return model, changed(file, model, *form, options.seed)


def changed(file: Path, model: ir.Model, opset: int, quantised: bool, seed: int) -> tuple[str, ...]:
    """What was made of an old or a quantised file before anything else, beside the original: of another opset, it gives the same,
    or it is refused.
    """
    if not (quantised or is_old(opset)):
        return ()
    with scratch() as folder:
        write_model(model, folder / "made.onnx", external=True)
        feeds = [sample_inputs(model, sizes_for(model), seed)]
        (was,), (made,) = (session.run(path, feeds) for path in (file, folder / "made.onnx"))
    notes, newest, far = [], opset_of(model), furthest(was, made)
    if is_old(opset):
        if not quantised and not far <= DEFAULT_TOLERANCE:
            raise ToastcError(
                f"{file}: is of opset {opset}; made into {newest}, its outputs are {far:.0e} of their scale apart; "
                f"export it with opset {OLDEST} or newer"
            )
        notes.append(f"the file is of opset {opset}; opset {newest} was made of it first, which gives the same")
    if quantised:
        far = rms_apart(list(zip(was, made, strict=True)))
        notes.append(
            f"the file is quantised; its float weights were taken back first: its outputs are {far:.1%} (rms) from the file's"
        )
    return tuple(notes)


@contextlib.contextmanager
def opened(model: Model, options: Options, tell: Tell) -> Iterator[tuple[OnnxSource, Preprocess | None]]:
    output = None if options.output is None else Path(options.output)
    if isinstance(model, str | Path):
        tell("read")
        with blame_file(model):
            loaded, notes = first_read(Path(model), options)
            yield OnnxSource(model, Path(model), str(model), output, options.provider, loaded, notes), None
        return
    given = as_ir(model)
    with scratch() as folder:
        file, asis, form = folder / "dense.onnx", folder / "given.onnx", (opset_of(given), is_quantised(given))
        if form[1] or is_old(form[0]):
            write_model(given, asis)
        made = prepare(given, "model")
        write_model(made, file)
        notes = changed(asis, made, *form, options.seed)
        yield OnnxSource(model, file, made.graph.name or "model", output, options.provider, notes=notes), None


def read(model: Model, example_inputs: Inputs | None = None, provider: str = "cpu") -> tuple[OnnxGraph, str]:
    """The graph as the compiler sees it, and what to call it."""
    if isinstance(model, str | Path):
        return OnnxGraph(load_model(Path(model)), provider), str(model)
    return OnnxGraph(prepare(as_ir(model), "model"), provider), "model"


def bench(dense: Model, pruned: Model, *, options: Mapping[str, str] | None = None, **more: Any) -> Json:
    words = ("provider", "batches", "threads", "seconds", "tell", "memory")
    return bench_files(Path(dense), Path(pruned), options=options, **{name: more[name] for name in words})


def prove(dense: Model, pruned: Model, plan: Plan | None, example_inputs: Inputs | None) -> Verification:
    """Two models of any form; the pruned one carries its plan, or it is given."""
    with scratch() as folder:
        paths = []
        for name, model in (("dense", dense), ("pruned", pruned)):
            if isinstance(model, str | Path):
                paths.append(Path(model))
                continue
            loaded = as_ir(model)
            if plan is not None and name == "pruned":
                embed_plan(loaded, plan)
            paths.append(folder / f"{name}.onnx")
            write_model(loaded, paths[-1])
        return verify_files(*paths)


def as_ir(model: Model) -> ir.Model:
    """A fresh copy of an in-memory model."""
    surgeon = sys.modules.get("onnx_graphsurgeon")
    if surgeon is not None and isinstance(model, surgeon.Graph):
        exported: ir.Model = ir.from_proto(surgeon.export_onnx(model))
        return exported
    if isinstance(model, onnx.ModelProto):
        return ir.from_proto(model)
    if isinstance(model, ir.Model):
        copy: ir.Model = model.clone()
        return copy
    raise ToastcError(f"can not prune a {type(model).__name__}; give a path, an ONNX model, a gs.Graph or a torch module")


def in_form_of(given: Model, model: ir.Model) -> Any:
    """A model of the kind that was given; a path stands for a ModelProto."""
    if isinstance(given, ir.Model):
        return model
    proto = ir.to_proto(model)
    surgeon = sys.modules.get("onnx_graphsurgeon")
    return surgeon.import_onnx(proto) if surgeon is not None and isinstance(given, surgeon.Graph) else proto
