"""`torch.compile(model, backend="toastc")`: shrink the graph Dynamo captured, prove it, and hand it on.

    options={"ratios": {...} | "r.json", "target": "macs=0.6", "plan": "plan.safetensors", "recipe": "magnitude", "verify": False,
             "then": "inductor" | "eager", "mode": "max-autotune", "fuse": True}

The options are those of `toastc.prune` that make sense here (`compiler.options`). Without ratios, a target or a plan every width
loses an eighth (`DEFAULT_RATIOS`). Weights are read when the graph is compiled and are frozen from then on: if they change later
the graph is compiled again. Inference only: asking the output for a gradient is an error that says so.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx
from torch._dynamo.exc import exceptions_allowed_to_be_fallback

from ...graphs.fx import FxGraph
from ...graphs.fx.capture import frozen, is_weight, shared_copy
from ...passes.deploy.fuse import fuse_attention
from ...passes.prove import Verification
from ...passes.prove.modules import verify_modules
from ...passes.state import State
from ...plans.plan import Plan
from ...system.errors import NothingToPrune, ToastcError
from ...system.progress import Tell
from ...system.vocabulary import Inputs, Json
from ..compile import compile
from ..options import BACKEND, Options, stated, words
from ..request import Request
from .module import MadeModule, ModuleSource

log = logging.getLogger("toastc")
DEFAULT_RATIOS = {"attention": 0.125, "ffn": 0.125}
BY_DEFAULT = {"recipe": "magnitude"}  # of options that other doors have another default for

Callee = Callable[..., Any]


def backend(gm: fx.GraphModule, example_inputs: Inputs, *, options: Json | None = None, mode: str | None = None) -> Callee:
    """One stable callable: Dynamo guards on a backend's identity. `mode` is inductor's, as torch.compile hands it on."""
    chosen = stated(BY_DEFAULT | checked(({} if mode is None else {"mode": mode}) | (options or {})))
    try:
        return Compiled(gm, example_inputs, chosen)
    except exceptions_allowed_to_be_fallback as error:  # after which Dynamo would run the dense model and not say so
        why = str(error).splitlines()[0]
        raise ToastcError(
            f"toastc backend: the graph can not be taken apart ({why}); with dynamic=True numbers become inputs of it: "
            "leave dynamic out, and sizes that change are found out all the same"
        ) from error


def checked(given: Json) -> Json:
    """The options, with a ratio file where nothing says how much is to go."""
    known = {name: word for name, _, word in words(BACKEND)}
    unknown = [k for k in given if k not in known]
    then = given.get("then", "inductor")
    if unknown or then not in known["then"].choices:
        listed = f"known: {', '.join(known)}; then: {', '.join(known['then'].choices)}"
        raise ToastcError(f"toastc backend: unknown option {unknown or then}; {listed}")
    if given.get("mode") is not None and given["mode"] not in (modes := list(torch._inductor.list_mode_options())):
        raise ToastcError(f"toastc backend: mode is one of {', '.join(modes)}; got {given['mode']}")
    asks = any(given.get(name) is not None for name in ("ratios", "target", "plan", "tokens"))
    return given if asks else {"ratios": DEFAULT_RATIOS, **given}


class Compiled:
    """The smaller graph behind the signature of the captured one."""

    def __init__(self, gm: fx.GraphModule, example_inputs: Inputs, options: Options) -> None:
        self.gm, self.options = gm, options
        self.weights = [i for i, v in enumerate(example_inputs) if is_weight(v)]
        self.needs_grad = any(isinstance(v, torch.Tensor) and v.requires_grad for v in example_inputs)
        self._compile(example_inputs)

    def _compile(self, inputs: Inputs) -> None:
        self.versions = self._versions(inputs)
        self.run, self.used = shrunken(self.gm, inputs, self.options)

    def _versions(self, inputs: Inputs) -> list[tuple[int, int]]:
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


def is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@dataclass
class DynamoSource(ModuleSource):
    """A graph whose weights are its own by now. The one that is cut shares them with the dense one."""

    fuse: bool = True

    def open(self) -> FxGraph:
        graph = FxGraph(shared_copy(self.captured))
        return fuse_attention(graph)[0] if self.fuse else graph

    @contextlib.contextmanager
    def written(self, state: State, request: Request, seconds: dict[str, float], tell: Tell) -> Iterator[MadeModule]:
        yield MadeGraph(self, state.graph)


@dataclass
class MadeGraph(MadeModule):
    """Sizes that hang on numbers are those that Dynamo left in it: on fake tensors they could not be read again."""

    def graph(self) -> FxGraph:
        return self.edited.reopened()

    def prove(self, plan: Plan, seed: int) -> Verification:
        """On the example inputs: what else a graph takes is Dynamo's to know."""
        dense = FxGraph(shared_copy(self.source.captured))
        return verify_modules(dense, self.graph(), plan, self.source.args, seed, again=False)


def shrunken(gm: fx.GraphModule, inputs: Inputs, options: Options) -> tuple[Callee, list[int]]:
    """The smaller graph handed on to what comes next, and which of the inputs it still takes."""
    own, used = frozen(gm, inputs)
    kept = [inputs[i] for i in used]
    source = DynamoSource(own, kept, "this graph", options.fuse)
    try:
        result = compile(source, Request.of(options))
        small, cut = result.model, len(result.plan.choices)
        log.info("toastc: %d couplings made narrower", cut)
    except NothingToPrune as nothing:
        log.warning("toastc: no attention or FFN in this graph (%s); a graph break may have cut a block in two", nothing)
        small = source.open().gm
    if options.then == "eager":
        return small.forward, used
    from torch._inductor import list_mode_options  # heavy, and not for those who want eager
    from torch._inductor.compile_fx import compile_fx

    return cast(Callee, compile_fx(small, kept, config_patches=list_mode_options(options.mode or "default"))), used
