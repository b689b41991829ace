"""Which numbers of a torch module a plan removes, for those who train the dense module masked.

masks = Masks(dense, plan)
masks.apply()                                # zeros: once before training, and after every step of the optimizer
toastc.prune(dense, plan=plan).model         # at last: smaller, with the outputs of the masked module
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..graphs import Kind, Op
from ..graphs.fx import FxGraph
from ..graphs.fx.calls import Call
from ..graphs.fx.capture import capture
from ..passes.match import match
from ..passes.prove.padding import blanked, kept_positions
from ..plans.plan import Keep, Plan, check_plan
from ..plans.sites import Site
from ..system.errors import ToastcError
from ..system.vocabulary import Inputs


class Masks:
    """`masks[name]` is false where the plan removes a number of the module's parameter of that name."""

    def __init__(self, model: nn.Module, plan: Plan, example_inputs: Inputs | None = None) -> None:
        for name, choice in plan.choices.items():
            if not isinstance(choice, Keep) or choice.fold is not None or choice.shift is not None:
                raise ToastcError(f"plan: {name} mixes channels; only plans that keep and drop whole ones can be trained masked")
        gm, _ = capture(model, example_inputs)
        graph = FxGraph(gm.requires_grad_(True))
        sites = match(graph)[1]
        check_plan(plan, sites)
        self.model, self.masks = model, masks_of(graph, sites, plan)

    def apply(self) -> None:
        """Zero what the plan removes. Call it once before training and after every step."""
        with torch.no_grad():
            for name, mask in self.masks.items():
                self.model.get_parameter(name).mul_(mask)


@torch.enable_grad()
def masks_of(graph: FxGraph, sites: Sequence[Site], plan: Plan) -> dict[str, Tensor]:
    """By parameter: false where a number reaches removed channels, and nothing else. Reach is what autograd says."""
    kept, learnt = kept_numbers(graph, sites, plan), []
    for op in graph.ops:
        for slot, value in enumerate(op.inputs):
            if value is None or not graph.is_constant(value):
                continue
            made, numbers = computed(graph, value), kept.get((op, slot))
            if made.requires_grad:
                learnt.append((made, torch.ones_like(made) if numbers is None else torch.from_numpy(numbers).to(made)))
            elif op.kind is Kind.LINEAR and slot == 1 and numbers is not None and not numbers.all():
                raise ToastcError(f"{op}: the plan cuts its weight, which is made of no parameter that a mask could be put on")
    reach = []
    for removed in (True, False):
        graph.gm.zero_grad()
        for made, stays in learnt:
            noise = torch.from_numpy(np.random.default_rng(0).uniform(1, 2, made.shape)).to(made)  # so that no sum is 0
            made.backward(noise * (1 - stays if removed else stays), retain_graph=True)
        reach.append({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in graph.gm.named_parameters()})
    gone = {n: (grad != 0) & (reach[1][n] == 0) for n, grad in reach[0].items()}
    return {n: ~mask for n, mask in gone.items() if mask.any()}


def kept_numbers(graph: FxGraph, sites: Sequence[Site], plan: Plan) -> dict[tuple[Op, int], np.ndarray]:
    """By operand: 1 where it stays, 0 where a coupling of the plan loses it."""
    every: dict[Any, list[np.ndarray]] = {}
    stay: dict[Any, list[np.ndarray]] = {}
    for site in sites:
        asked = [c for c in (site.heads, site.inputs) if c is not None and plan.get(site.name, c.name)]
        for coupling in (*site.couplings, *asked):
            place = kept_positions(site, coupling, plan)
            for member in coupling.members if not coupling.reason else ():
                every.setdefault((member.operand, member.axes), []).append(member.index.ravel())
                stay.setdefault((member.operand, member.axes), []).append(member.index[place[..., 0], place[..., 1]].ravel())
    made: dict[tuple[Op, int], np.ndarray] = {}
    for (operand, axes), positions in every.items():
        op, slot = operand
        numbers = made.get(operand, np.ones(graph.shape(op.inputs[slot]), np.float32))
        made[operand] = blanked(numbers, axes, np.setdiff1d(np.concatenate(positions), np.concatenate(stay[operand, axes])))
    return made


def computed(graph: FxGraph, value: Any) -> Tensor:
    """A constant of the graph, with the way back to the parameters it is made of."""
    if value.op == "get_attr":
        return graph.tensor(value)
    made: Tensor = Call.of(value).run(lambda node: computed(graph, node))
    return made
