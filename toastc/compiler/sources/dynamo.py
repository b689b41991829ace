"""`torch.compile(model, backend="toastc")`: shrink the graph Dynamo captured, prove it, and hand it on.

    options={"ratios": {...} | "r.json", "target": "macs=0.6", "plan": "plan.safetensors", "recipe": "magnitude", "verify": False,
             "then": "inductor" | "eager", "mode": "max-autotune", "fuse": True}

The options are those of `toastc.prune` that make sense here (`compiler.options`), `data` among them. Without ratios, a target or
a plan every width loses an eighth (`DEFAULT_RATIOS`). How far the outputs moved is logged, as a warning where it is far. Weights
are read when the graph is compiled and are frozen from then on: if they change later the graph is compiled again. Inference only:
asking the output for a gradient is an error that says so.
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
from torch.utils import _pytree as pytree

from ...graphs.fx import FxGraph
from ...graphs.fx.capture import frozen, is_weight, shared_copy
from ...graphs.fx.names import hint
from ...passes.deploy.fuse import fuse_attention
from ...passes.prove import Verification, rms_apart
from ...passes.prove.modules import verify_modules
from ...passes.state import State
from ...plans.plan import Plan
from ...system.arrays import as_array
from ...system.errors import NothingToPrune, ToastcError
from ...system.progress import Tell
from ...system.vocabulary import Inputs, Json
from ..compile import compile
from ..options import BACKEND, Options, stated, words
from ..request import Request
from ..result import Result
from .module import MadeModule, ModuleSource

log = logging.getLogger("toastc")
DEFAULT_RATIOS = {"attention": 0.125, "ffn": 0.125}
QUICK = {"recipe": "magnitude"}  # where nothing is calibrated: a call should not wait for synthetic images
ADVICE = "; they move less with data= (inputs to calibrate on), or where less is asked for"
FAR = 0.05  # of the outputs: who moves them further is told

Callee = Callable[..., Any]


def backend(gm: fx.GraphModule, example_inputs: Inputs, *, options: Json | None = None, mode: str | None = None) -> Callee:
    """One stable callable: Dynamo guards on a backend's identity. `mode` is inductor's, as torch.compile hands it on."""
    given = checked(({} if mode is None else {"mode": mode}) | (options or {}))
    calibrated = any(given.get(name) is not None for name in ("data", "moments"))
    chosen = stated(given if calibrated else QUICK | given)
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


@torch.no_grad()
def tell_what_moved(dense: fx.GraphModule, small: fx.GraphModule, inputs: Inputs, result: Result) -> None:
    """On the inputs that came first, which nothing was fitted on."""
    given = [hint(value) for value in inputs]
    outs = [[as_array(t) for t in pytree.tree_leaves(gm(*given)) if isinstance(t, torch.Tensor)] for gm in (dense, small)]
    far, report = rms_apart(list(zip(*outs, strict=True))), result.report
    level, more = (logging.WARNING, ADVICE) if far > FAR else (logging.INFO, "")
    left, cut = report.after.macs / report.before.macs, len(result.plan.choices)
    said = "toastc: %d couplings narrower, %.0f %% of the MACs left; the outputs of the first call moved by %.1f %% (rms)%s"
    log.log(level, said, cut, 100 * left, 100 * far, more)


def shrunken(gm: fx.GraphModule, inputs: Inputs, options: Options) -> tuple[Callee, list[int]]:
    """The smaller graph handed on to what comes next, and which of the inputs it still takes."""
    own, used = frozen(gm, inputs)
    kept = [inputs[i] for i in used]
    source = DynamoSource(own, kept, "this graph", options.fuse)
    try:
        result = compile(source, Request.of(options))
        small = result.model
        tell_what_moved(own, small, kept, result)
    except NothingToPrune as nothing:
        log.warning("toastc: no attention or FFN in this graph (%s); a graph break may have cut a block in two", nothing)
        small = source.open().gm
    if options.then == "eager":
        return small.forward, used
    from torch._inductor import list_mode_options  # heavy, and not for those who want eager
    from torch._inductor.compile_fx import compile_fx

    return cast(Callee, compile_fx(small, kept, config_patches=list_mode_options(options.mode or "default"))), used
