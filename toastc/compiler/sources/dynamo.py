"""`torch.compile(model, backend="toastc")`: shrink the graph Dynamo captured, and hand it on.

    options={"ratios": {...} | "r.json", "plan": "plan.safetensors", "recipe": "magnitude", "then": "inductor" | "eager",
             "mode": "max-autotune", "fuse": True}

Without options every width loses an eighth (`DEFAULT_RATIOS`). Weights are read when the graph is compiled and are
frozen from then on: if they change later the graph is compiled again. Inference only: asking the output for a
gradient is an error that says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx
from torch._dynamo.exc import exceptions_allowed_to_be_fallback

from ...graphs.fx import FxGraph
from ...graphs.fx.unpack import unpacked
from ...passes import Shrink, recipe
from ...passes.deploy.fuse import fuse_attention
from ...passes.state import State, run
from ...passes.tokens.merge import merge_tokens
from ...plans import ratios as ratio_file
from ...plans.plan import Plan, check_plan
from ...system.errors import ToastcError

log = logging.getLogger("toastc")
DEFAULT_RATIOS = {"attention": 0.125, "ffn": 0.125}
OPTIONS = ("ratios", "plan", "recipe", "then", "mode", "fuse")
THEN = ("inductor", "eager")

Runner = Callable[..., Any]


def backend(
    gm: fx.GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None, mode: str | None = None
) -> Runner:
    """One stable callable: Dynamo guards on a backend's identity. `mode` is inductor's, as torch.compile hands it on."""
    chosen = ({} if mode is None else {"mode": mode}) | (options or {})
    unknown = [k for k in chosen if k not in OPTIONS]
    if unknown or chosen.get("then", "inductor") not in THEN:
        raise ToastcError(
            f"toastc backend: unknown option {unknown or chosen['then']}; known: {', '.join(OPTIONS)}; then: {', '.join(THEN)}"
        )
    if "mode" in chosen and chosen["mode"] not in (known := list(torch._inductor.list_mode_options())):
        raise ToastcError(f"toastc backend: mode is one of {', '.join(known)}; got {chosen['mode']}")
    try:
        return Compiled(gm, example_inputs, chosen)
    except exceptions_allowed_to_be_fallback as error:  # after which Dynamo would run the dense model and not say so
        why = str(error).splitlines()[0]
        raise ToastcError(
            f"toastc backend: the graph can not be taken apart ({why}); with dynamic=True numbers become inputs of it: "
            "leave dynamic out, and sizes that change are found out all the same"
        ) from error


class Compiled:
    """The smaller graph behind the signature of the captured one."""

    def __init__(self, gm: fx.GraphModule, example_inputs: Sequence[Any], options: dict[str, Any]) -> None:
        self.gm, self.options = gm, options
        self.weights = [i for i, v in enumerate(example_inputs) if is_weight(v)]
        self.needs_grad = any(isinstance(v, torch.Tensor) and v.requires_grad for v in example_inputs)
        self._compile(example_inputs)

    def _compile(self, inputs: Sequence[Any]) -> None:
        self.versions = self._versions(inputs)
        self.run, self.used = shrunken(self.gm, inputs, self.options)

    def _versions(self, inputs: Sequence[Any]) -> list[tuple[int, int]]:
        return [(id(inputs[i]), inputs[i]._version) for i in self.weights]

    def __call__(self, *inputs: Any) -> Any:
        if self._versions(inputs) != self.versions:
            log.warning("toastc: weights changed since they were compiled; compiling again")
            self._compile(inputs)
        with torch.no_grad():
            out = self.run(*[inputs[i] for i in self.used])
        if self.needs_grad and torch.is_grad_enabled():
            anchor = torch.zeros((), requires_grad=True)
            return torch.utils._pytree.tree_map(lambda t: NoGradient.apply(t, anchor) if is_float(t) else t, out)
        return out


class NoGradient(torch.autograd.Function):
    """Passes a tensor on, and explains itself when somebody wants its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError("toastc compiles for inference: its graphs have no gradient; train toastc.prune(model).model instead")


def is_weight(value: Any) -> bool:
    """Parameters, and buffers that Dynamo marked as static."""
    return isinstance(value, torch.nn.Parameter) or getattr(value, "_dynamo_static_input_type", None) is not None


def is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def shrunken(gm: fx.GraphModule, inputs: Sequence[Any], options: dict[str, Any]) -> tuple[Runner, list[int]]:
    """The smaller graph handed on to what comes next, and which of the inputs it still takes."""
    gm = unpacked(gm)
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    bound = {n: v for n, v in zip(placeholders, inputs, strict=True) if is_weight(v)}
    graph = FxGraph(gm, bound)
    if options.get("fuse", True):
        graph = fuse_attention(graph)[0]
    plan = cut(graph, options)
    if plan is not None:
        log.info("toastc: %d couplings made narrower", len(plan.choices))
    used = [i for i, n in enumerate(placeholders) if n.users or n not in bound]
    for n in placeholders:
        if n in bound and not n.users:
            gm.graph.erase_node(n)
    gm.recompile()
    kept = [inputs[i] for i in used]
    if options.get("then", "inductor") == "eager":
        return gm.forward, used
    from torch._inductor import list_mode_options
    from torch._inductor.compile_fx import compile_fx

    return cast(Runner, compile_fx(gm, kept, config_patches=list_mode_options(options.get("mode", "default")))), used


def cut(graph: FxGraph, options: dict[str, Any]) -> Plan | None:
    """Carry out the ratios or the plan on this graph; None if nothing in it can be cut."""
    first, *rest = recipe(options.get("recipe", "magnitude"))
    given = options.get("ratios", DEFAULT_RATIOS)
    ratios = ratio_file.read(Path(given)) if isinstance(given, str | Path) else ratio_file.parse(given)
    plan = options.get("plan")
    if plan is not None and not isinstance(plan, Plan):
        plan = Plan.load(Path(plan))
    merges = ratios.tokens if plan is None else plan.merges
    if merges:
        graph = merge_tokens(graph, merges)[0]
    state, _ = run([first], State(graph, ratios))
    if not state.sites:
        why = f" ({state.rejects[0].node}: {state.rejects[0].reason})" if state.rejects else ""
        log.warning("toastc: no attention or FFN in this graph%s; a graph break may have cut a block in two", why)
        return None
    if plan is not None:
        check_plan(plan, state.sites)
        state = replace(state, plan=plan)
    else:
        state, _ = run(rest, state)
    if state.plan:
        run([Shrink()], state)
    return replace(state.plan, merges=merges) if state.plan or merges else None
