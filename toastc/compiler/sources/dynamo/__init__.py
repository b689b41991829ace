"""`torch.compile(model, backend="toastc")`: observe, shrink the graph Dynamo captured, prove it, and hand it on.

    options={"target": "error=0.02" | "macs=0.6", "observe": 64, "data": loader, "ratios": {...} | "r.json",
             "plan": "plan.safetensors", "recipe": "magnitude", "verify": False, "then": "inductor" | "eager",
             "mode": "max-autotune", "fuse": True}

The options are those of `toastc.prune` that make sense here (`compiler.options`). Without ratios, a target or a plan, so much
goes as moves the outputs by no more than `DEFAULT`. What is measured is measured on `data`, or on the first inputs that come:
they run through the dense graph. What happened is logged. Weights are frozen when the graph is cut: if they change later it
begins anew. Inference only: asking the output for a gradient is an error that says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._dynamo.exc import exceptions_allowed_to_be_fallback

from ....system.errors import ToastcError
from ....system.vocabulary import Inputs, Json
from ...options import BACKEND, stated, words
from .compiled import Compiled

DEFAULT = "error=0.02"  # of the outputs, where nothing says how much is to go


def backend(
    gm: fx.GraphModule, example_inputs: Inputs, *, options: Json | None = None, mode: str | None = None
) -> Callable[..., Any]:
    """One stable callable: Dynamo guards on a backend's identity. `mode` is inductor's, as torch.compile hands it on."""
    chosen = stated(checked(({} if mode is None else {"mode": mode}) | (options or {})))
    try:
        return Compiled(gm, example_inputs, chosen, session=0 if options is None else id(options))
    except exceptions_allowed_to_be_fallback as error:  # after which Dynamo would run the dense model and not say so
        why = str(error).splitlines()[0]
        raise ToastcError(
            f"toastc backend: the graph can not be taken apart ({why}); with dynamic=True numbers become inputs of it: "
            "leave dynamic out, and sizes that change are found out all the same"
        ) from error


def checked(given: Json) -> Json:
    """The options, with a target where nothing says how much is to go."""
    known = {name: word for name, _, word in words(BACKEND)}
    unknown = [k for k in given if k not in known]
    then = given.get("then", "inductor")
    if unknown or then not in known["then"].choices:
        listed = f"known: {', '.join(known)}; then: {', '.join(known['then'].choices)}"
        raise ToastcError(f"toastc backend: unknown option {unknown or then}; {listed}")
    if given.get("mode") is not None and given["mode"] not in (modes := list(torch._inductor.list_mode_options())):
        raise ToastcError(f"toastc backend: mode is one of {', '.join(modes)}; got {given['mode']}")
    asks = any(given.get(name) is not None for name in ("ratios", "target", "plan", "tokens"))
    return given if asks else {"target": DEFAULT, **given}
