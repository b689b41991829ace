"""torch modules, captured by torch.export."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx

from ...calibration import Preprocess
from ...graphs.fx import FxGraph
from ...graphs.fx.capture import capture, reread, shared_copy
from ...passes.prove import Verification
from ...passes.prove.modules import verify_modules
from ...passes.state import State
from ...plans.plan import Plan
from ...plans.sites import Site
from ...report.data import Size
from ...system.progress import Tell
from ...system.vocabulary import Inputs, Json, Model
from ...timing.modules import bench_modules
from ..options import Options
from ..request import Request


@dataclass
class ModuleSource:
    """`captured` stays as it is: every graph is a copy."""

    captured: fx.GraphModule
    args: Inputs
    name: str
    opening = "export"
    consequence = ""

    def files(self) -> list[Path]:
        return []

    def open(self) -> FxGraph:
        return FxGraph(copy.deepcopy(self.captured))

    def size(self, graph: Any) -> Size:
        return size_of(graph.gm, graph.totals()[0])

    def single_nodes(self, sites: Sequence[Site]) -> Sequence[Site]:
        return [s for s in sites if s.kind == "attention" and s.wiring.mix.attention is not None]

    def unchanged(self) -> fx.GraphModule:
        return self.captured

    def unfinished(self, state: State) -> fx.GraphModule:
        gm: fx.GraphModule = state.graph.gm
        return gm

    @contextlib.contextmanager
    def written(self, state: State, request: Request, seconds: dict[str, float], tell: Tell) -> Iterator[MadeModule]:
        made = MadeModule(self, state.graph)
        yield made
        for part in made.model.modules():
            part.training = False  # as it was exported
        made.model.toastc_plan = state.plan


@dataclass
class MadeModule:
    source: ModuleSource
    edited: FxGraph

    @property
    def model(self) -> fx.GraphModule:
        return self.edited.gm

    def prove(self, plan: Plan, seed: int) -> Verification:
        return verify_modules(FxGraph(shared_copy(self.source.captured)), self.graph(), plan, self.source.args, seed)

    def graph(self) -> FxGraph:
        return reread(copy.deepcopy(self.model), self.source.args)

    def size(self, macs: int) -> Size:
        return size_of(self.model, macs)


def size_of(gm: fx.GraphModule, macs: int) -> Size:
    tensors = {id(t): t for t in (*gm.parameters(), *gm.buffers())}.values()
    params = sum(t.numel() for t in tensors if t.is_floating_point())
    return Size(macs, params, sum(t.numel() * t.element_size() for t in tensors))


@contextlib.contextmanager
def opened(model: Model, options: Options, tell: Tell) -> Iterator[tuple[ModuleSource, Preprocess | None]]:
    tell("export")
    gm, args = capture(model, options.example_inputs)
    yield ModuleSource(gm, args, type(model).__name__), Preprocess.of(getattr(model, "pretrained_cfg", None))


def read(model: Model, example_inputs: Inputs | None = None, provider: str = "cpu") -> tuple[FxGraph, str]:
    """The graph as the compiler sees it, and what to call it."""
    return FxGraph(capture(model, example_inputs)[0]), type(model).__name__


def bench(dense: Model, pruned: Model, *, example_inputs: Inputs | None = None, **more: Any) -> Json:
    macs = read(dense, example_inputs)[0].totals()[0], read(pruned, example_inputs)[0].totals()[0]
    words = ("batches", "threads", "seconds", "compiled", "tell")
    return bench_modules(dense, pruned, example_inputs, macs, *(more[name] for name in words))


def prove(dense: Model, pruned: Model, plan: Plan | None, example_inputs: Inputs | None) -> Verification:
    """A pruned module has its plan as `toastc_plan`, or it is given."""
    gm, args = capture(dense, example_inputs)
    small = reread(shared_copy(pruned), args)
    return verify_modules(FxGraph(gm), small, plan if plan is not None else pruned.toastc_plan, args)
