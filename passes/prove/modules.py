"""verify, for torch: the dense graph with the zero-filled pruned weights gives what the pruned graph gives."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import fx

from toastc.graphs.fx import CHOSEN, FxGraph
from toastc.graphs.fx.names import hint
from toastc.plans.plan import Plan
from toastc.system.errors import VerificationFailed
from toastc.system.vocabulary import Array, Inputs

from ..shrink.selections import hold_selections
from . import DEFAULT_TOLERANCE, TOLERANCE, Verification, furthest
from .prepare import padded_into


def verify_modules(dense: FxGraph, pruned: FxGraph, plan: Plan, args: Inputs, seed: int = 0, again: bool = True) -> Verification:
    """Pads into `dense`, which is changed by it, and runs both, on `args` and, `again`, on random inputs of the same kind."""
    tolerance = max((TOLERANCE.get(name, DEFAULT_TOLERANCE) for name in dense.float_types()), default=DEFAULT_TOLERANCE)
    try:
        graph, sites, padded, chosen = padded_into(dense, pruned, plan)
        chosen += hold_selections(graph, sites, plan)
        graph.finish()
    except VerificationFailed as error:
        return Verification.failed(str(error), tolerance)
    errors, blank = [0.0], inf
    cut = {graph.operand(op, slot) for op, slot in padded.cut}
    generator, args = torch.Generator().manual_seed(seed), [hint(a) for a in args]
    for number, given in enumerate((args, [fresh(a, generator) for a in args]) if again else (args,)):
        try:
            watching = Watching(pruned.gm)
            small = run(watching, leaves(given))
            inputs = [*leaves(given), *(watching.seen[name] for name in chosen)]
            whole = run(fx.Interpreter(dense.gm), inputs)
            if cut and not number:
                blank = furthest(whole, run(Without(dense.gm, cut), inputs))
        except RuntimeError as error:  # of a model that asserts something of its inputs
            why = str(error).strip().splitlines()[0]
            return Verification.failed(f"random inputs can not be run ({why})", tolerance, padded.count)
        errors.append(furthest(whole, small))
    return Verification.of(max(errors), tolerance, 2 if again else 1, padded.count, blank)


@torch.no_grad()
def run(interpreter: fx.Interpreter, inputs: Sequence[Array]) -> list[torch.Tensor]:
    return tensors(interpreter.run(*inputs, enable_io_processing=False))


class Without(fx.Interpreter):
    """Runs a module as if some of its tensors were zero: what its outputs are then is what a proof can see of them."""

    def __init__(self, gm: fx.GraphModule, blank: set[Any]) -> None:
        super().__init__(gm)
        self.blank = blank

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        return torch.zeros_like(made) if n in self.blank else made


class Watching(fx.Interpreter):
    """Runs a module and keeps what its selections chose, which the dense graph is handed, so that both choose the same."""

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        if CHOSEN in n.meta:
            self.seen[n.meta[CHOSEN]] = made
        return made

    def run(self, *args: Any, **options: Any) -> Any:
        self.seen: dict[str, torch.Tensor] = {}
        return super().run(*args, **options)


def leaves(value: Array) -> list[Array]:
    return list(torch.utils._pytree.tree_leaves(value))


def fresh(value: Array, generator: torch.Generator) -> Any:
    """Random numbers of the same kind; token ids and masks stay as they are."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return torch.randn(value.shape, generator=generator).to(value)


def tensors(value: Array) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
