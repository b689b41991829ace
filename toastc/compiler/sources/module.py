"""torch modules, captured by torch.export."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import fx, nn

from ...calibration import Preprocess
from ...graphs.fx import FxGraph
from ...graphs.fx.capture import capture, reread, shared_copy
from ...graphs.modules import NotTransplanted, transplanted
from ...passes.prove import Verification
from ...passes.prove.modules import verify_modules
from ...passes.state import State
from ...plans.plan import Plan, Select, from_dict
from ...plans.sites import Site
from ...report.data import Size
from ...system.errors import VerificationFailed
from ...system.progress import Tell
from ...system.vocabulary import Inputs, Json, Model
from ...timing.modules import bench_modules
from ..options import Options
from ..request import Request


@dataclass
class GraphSource:
    """`captured` stays as it is: every graph is a copy."""

    captured: fx.GraphModule
    args: Inputs
    name: str
    opening = "export"
    consequence = ""
    leaves_out = True

    def files(self) -> list[Path]:
        return []

    def open(self) -> FxGraph:
        return FxGraph(copy.deepcopy(self.captured))

    def size(self, graph: Any) -> Size:
        return size_of(graph.gm, graph.totals()[0])

    def single_nodes(self, sites: Sequence[Site]) -> Sequence[Site]:
        return [s for s in sites if s.kind == "attention" and s.wiring.mix.attention is not None]

    def unchanged(self) -> nn.Module:
        return self.captured

    def unfinished(self, state: State) -> fx.GraphModule:
        gm: fx.GraphModule = state.graph.gm
        return gm

    @contextlib.contextmanager
    def written(self, state: State, request: Request, seconds: dict[str, float], tell: Tell) -> Iterator[MadeModule]:
        made = MadeModule(self, state.graph)
        yield made
        finished(made.model, state.plan)


@dataclass
class MadeModule:
    """A graph; `notes` say why, where the module itself was wanted."""

    source: GraphSource
    edited: FxGraph
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def model(self) -> nn.Module:
        return self.edited.gm

    def prove(self, plan: Plan, seed: int) -> Verification:
        return verify_modules(FxGraph(shared_copy(self.source.captured)), self.graph(), plan, self.source.args, seed)

    def graph(self) -> FxGraph:
        return reread(copy.deepcopy(self.edited.gm), self.source.args)

    def size(self, macs: int) -> Size:
        return size_of(self.model, macs)


@dataclass
class ModuleSource(GraphSource):
    """A module that stays what it is. Its tokens all stay: where some are left out, its parts no longer fit each other."""

    given: nn.Module
    leaves_out = False

    def size(self, graph: Any) -> Size:
        return size_of(self.given, graph.totals()[0])

    def unchanged(self) -> nn.Module:
        return self.given

    @contextlib.contextmanager
    def written(self, state: State, request: Request, seconds: dict[str, float], tell: Tell) -> Iterator[MadeModule]:
        tell("write")
        made = self.transplanted(state)
        yield made
        finished(made.model, state.plan)

    def transplanted(self, state: State) -> MadeModule:
        try:
            if state.merges:
                raise NotTransplanted("tokens are merged between its modules")
            if any(isinstance(choice, Select) for choice in state.plan.choices.values()):
                raise NotTransplanted("channels are chosen at run time")
            return MadeOwn(self, state.graph, transplanted(self.given, self.captured, state.graph.gm, self.args))
        except NotTransplanted as why:
            return MadeModule(self, state.graph, notes=(f"the smaller model is a graph, not a {self.name}: {why}",))


@dataclass
class MadeOwn(MadeModule):
    """The module itself, made smaller. It is proven as it is: captured once more."""

    own: nn.Module

    @property
    def model(self) -> nn.Module:
        return self.own

    def graph(self) -> FxGraph:
        return FxGraph(shared_copy(self.again))

    @cached_property
    def again(self) -> fx.GraphModule:
        try:
            return capture(self.own, self.source.args)[0]
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            why = str(error).strip().splitlines()[0]
            raise VerificationFailed(
                f"{self.source.name}: made smaller it can not be captured any more ({why}); as_graph=True gives a graph"
            ) from error


def finished(model: nn.Module, plan: Plan) -> None:
    """As it was exported, and with what it takes to prove it again."""
    for part in model.modules():
        part.training = False
    vars(model)["toastc_plan"] = plan.to_dict()


def size_of(gm: nn.Module, macs: int) -> Size:
    tensors = {id(t): t for t in (*gm.parameters(), *gm.buffers())}.values()
    params = sum(t.numel() for t in tensors if t.is_floating_point())
    return Size(macs, params, sum(t.numel() * t.element_size() for t in tensors))


@contextlib.contextmanager
def opened(model: Model, options: Options, tell: Tell) -> Iterator[tuple[GraphSource, Preprocess | None]]:
    tell("export")
    gm, args = capture(model, options.example_inputs)
    name, prepared = type(model).__name__, Preprocess.of(getattr(model, "pretrained_cfg", None))
    whole = isinstance(model, nn.Module) and not isinstance(model, fx.GraphModule) and not options.as_graph
    yield ModuleSource(gm, args, name, model) if whole else GraphSource(gm, args, name), prepared


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
    small = reread(shared_copy(pruned), args) if isinstance(pruned, fx.GraphModule) else FxGraph(capture(pruned, args)[0])
    return verify_modules(FxGraph(gm), small, plan if plan is not None else from_dict(pruned.toastc_plan), args)
