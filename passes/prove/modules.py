"""verify, for torch: the dense graph with the zero-filled pruned weights gives what the pruned graph gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from toastc.graphs import Op
from toastc.graphs.fx import CHOSEN, FxGraph
from toastc.graphs.fx.names import hint
from toastc.plans.plan import Plan
from toastc.system.errors import VerificationFailed
from toastc.system.vocabulary import Array, Inputs

from ..shrink.selections import hold_selections
from . import DEFAULT_TOLERANCE, TOLERANCE, Verification, difference
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
    errors, blank = [0.0], float("inf")
    generator, args = torch.Generator().manual_seed(seed), [hint(a) for a in args]
    for number, given in enumerate((args, [fresh(a, generator) for a in args]) if again else (args,)):
        try:
            expected, got = both(dense.gm, pruned.gm, given, chosen)
        except RuntimeError as error:  # of a model that asserts something of its inputs
            why = str(error).strip().splitlines()[0]
            return Verification.failed(f"random inputs can not be run ({why})", tolerance, padded.count)
        errors += [difference(as_array(a), as_array(b)) for a, b in zip(expected, got, strict=True)]
        if not number:
            blank = change(pruned, padded.cut, given, got)
    return Verification.of(max(errors), tolerance, 2 if again else 1, padded.count, blank)


@torch.no_grad()
def change(pruned: FxGraph, cut: Sequence[tuple[Op, int]], given: Inputs, outputs: Sequence[torch.Tensor]) -> float:
    """How far the outputs are from those of the pruned graph without its cut weights: what the proof can see of them."""
    blank = {op.inputs[slot] for op, slot in cut}
    if not blank:
        return float("inf")
    made = tensors(Without(pruned.gm, blank).run(*leaves(given), enable_io_processing=False))
    return max((difference(as_array(a), as_array(b)) for a, b in zip(outputs, made, strict=True)), default=float("inf"))


class Without(fx.Interpreter):
    """Runs a module as if some of its tensors were zero."""

    def __init__(self, gm: fx.GraphModule, blank: set[Any]) -> None:
        super().__init__(gm)
        self.blank = blank

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        return torch.zeros_like(made) if n in self.blank else made


@torch.no_grad()
def both(
    dense: fx.GraphModule, pruned: fx.GraphModule, given: Inputs, chosen: Sequence[str]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The outputs of both. What was `chosen` at run time is handed on to the dense graph, so that both choose the same."""
    if not chosen:
        return tensors(dense(*given)), tensors(pruned(*given))
    watching = Watching(pruned)
    got = tensors(watching.run(*leaves(given), enable_io_processing=False))
    more = [watching.seen[name] for name in chosen]
    return tensors(fx.Interpreter(dense).run(*leaves(given), *more, enable_io_processing=False)), got


class Watching(fx.Interpreter):
    """Runs a module and keeps what its selections chose."""

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


def as_array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
