"""The whole path for torch modules: export -> match -> score -> plan -> shrink -> verify."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ...graphs.fx import FxGraph, drop_unused
from ...graphs.fx.reopen import Reopening
from ...graphs.fx.unpack import is_packed, unpacked, without_empty_parts
from ...passes.state import run
from ...report import Size
from ...system.errors import ToastcError, VerificationFailed
from ...system.progress import Tell
from ..driver import Request, begun, choose, planned
from ..result import Result


def example_inputs_of(model: torch.nn.Module) -> tuple[Any, ...]:
    """Two images of the size a model of timm, transformers or torchvision says it takes."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    size = config.get("input_size") if isinstance(config, dict) else None
    embed = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if isinstance(embed, tuple | list) and size is not None:
        size = (size[0], *embed)
    elif size is None:
        size = image_size_of(getattr(model, "config", None)) or image_size_of(model)
    if size is None:
        raise ToastcError(
            f"{type(model).__name__}: can not guess its inputs; give example_inputs=(tensor, ...), with a batch of 2"
        )
    channels = getattr(getattr(getattr(model, "patch_embed", None), "proj", None), "in_channels", size[0])
    like = next(model.parameters())
    return (torch.randn(2, channels, *size[1:], dtype=like.dtype, device=like.device),)


def image_size_of(config: Any) -> tuple[int, int, int] | None:
    """As configurations of transformers and models of torchvision say it; what takes any size was mostly made for 224."""
    size = getattr(config, "image_size", None)
    if size is None and getattr(config, "num_channels", None) is not None:
        size = 224
    if not isinstance(size, int | list | tuple):
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(config, "num_channels", 3), height, width


def export(model: Any, example_inputs: Sequence[Any] | None) -> tuple[fx.GraphModule, tuple[Any, ...]]:
    """A graph with parameters of its own; the batch stays free where the model allows it."""
    if type(model).__name__ == "ExportedProgram":
        program, args = model, model.example_inputs[0] if example_inputs is None else example_inputs
    else:
        args = example_inputs if example_inputs is not None else example_inputs_of(model)
        program = captured(model, tuple(args))
    return alive(copy.deepcopy(program.module(check_guards=False))), tuple(args)


def captured(model: Any, args: tuple[Any, ...]) -> torch.export.ExportedProgram:
    if model.training:
        raise ToastcError(f"{type(model).__name__}: is in training mode; call model.eval() first")
    free = tuple({0: torch.export.Dim.AUTO} if isinstance(a, torch.Tensor) and a.ndim and a.shape[0] > 1 else None for a in args)
    with torch.no_grad():
        return torch.export.export(model, args, dynamic_shapes=free, strict=False)


def alive(gm: fx.GraphModule) -> fx.GraphModule:
    """Without what no output needs, so that it is not counted before the cut and missing after."""
    if is_packed(gm):
        gm = unpacked(gm)
    without_empty_parts(gm.graph)
    gm.graph.eliminate_dead_code()
    drop_unused(gm)
    gm.recompile()
    return gm


def open_module(model: Any, example_inputs: Sequence[Any] | None = None) -> FxGraph:
    return FxGraph(export(model, example_inputs)[0])


def size_of(gm: fx.GraphModule, macs: int) -> Size:
    tensors = {id(t): t for t in (*gm.parameters(), *gm.buffers())}.values()
    params = sum(t.numel() for t in tensors if t.is_floating_point())
    return Size(macs, params, sum(t.numel() * t.element_size() for t in tensors))


def compile_module(model: Any, example_inputs: Sequence[Any] | None, request: Request, tell: Tell) -> Result:
    tell("export")
    clock = time.perf_counter()
    gm, args = export(model, example_inputs)
    dense = copy.deepcopy(gm) if request.verify or request.target is not None else None
    graph = FxGraph(gm)
    exporting = time.perf_counter() - clock
    macs = graph.totals()[0]
    before = size_of(gm, macs)
    state, request = begun(graph, request, macs, lambda: FxGraph(copy.deepcopy(dense or gm)), tell)
    gm = state.graph.gm  # type: ignore[attr-defined]
    state, seconds = choose(state, request, macs, tell)
    seconds = {"export": exporting} | seconds
    plan, name = state.plan, type(model).__name__
    called = [s for s in state.sites if s.kind == "attention" and s.wiring.mix.attention is not None]
    report = planned(name, request, state, before, seconds, called)
    if request.dry_run or not plan:
        return Result(gm, plan, report if plan else replace(report, after=before), state.moments)
    from ...passes import Shrink

    state, took = run([Shrink()], state)
    verified = measured = None
    if request.verify and dense is not None:
        from ...passes.prove.files import output_error
        from ...passes.prove.modules import verify_modules

        tell("verify")
        clock = time.perf_counter()
        if state.data is not None:
            measured = output_error(FxGraph(dense), with_shapes(copy.deepcopy(gm), args), state.data)
        result = verify_modules(dense, gm, plan, args, request.seed)
        took["verify"] = time.perf_counter() - clock
        verified = result.to_dict()
        if not result.ok:
            raise VerificationFailed(f"{name}: verification failed: {result.reason}")
    for part in gm.modules():
        part.training = False  # as it was exported
    gm.toastc_plan = plan
    size = size_of(gm, report.after.macs)
    report = replace(report, after=size, seconds=seconds | took, verified=verified, notes=state.notes, measured=measured)
    return Result(gm, plan, report, state.moments)


def with_shapes(gm: fx.GraphModule, args: Sequence[Any]) -> FxGraph:
    """Look at an edited graph afresh: shapes are found by running it on fake tensors."""
    for node in gm.graph.nodes:
        node.meta.pop("unbacked_bindings", None)
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)  # sizes may hang on numbers
    with enable_python_dispatcher():
        Reopening(gm, mode).propagate(*args)
    return FxGraph(gm)
