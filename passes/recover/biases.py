"""fold-biases: what a removed value channel always adds goes into the bias behind it.

Attention weights sum to one, so that the bias b_j of a removed value channel reaches the output as it is, through its
column of the projection: the projection's bias becomes b + W[:, P] b_P. Exact, and without data; the mean of what
varies is `fold-consumers{by=mean}`, which needs moments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from toastc.plans.plan import Choice, Keep, Plan
from toastc.plans.sites import Coupling

from ..state import State


@dataclass(frozen=True)
class FoldBiases:
    """Move the biases of removed value channels into the bias of the projection."""

    name = "fold-biases"

    def __call__(self, state: State) -> State:
        choices: dict[str, Choice] = dict(state.plan.choices)
        for site in state.sites:
            coupling, choice = site.coupling("vo"), state.plan.get(site.name, "vo")
            if coupling is None or not isinstance(choice, Keep) or not choice.exact or not coupling.rotatable:
                continue
            bias = biases(state, coupling)
            gone = np.ones_like(bias)
            for group in state.plan.groups(site.name, coupling):
                gone[group, choice.index[group]] = 0
            if (bias * gone).any():
                choices[f"{site.name}.vo"] = replace(choice, shift=bias * gone + (0 if choice.shift is None else choice.shift))
        return replace(state, plan=Plan(choices))


def biases(state: State, coupling: Coupling) -> np.ndarray:
    """[groups, width]: what is added to each channel of the values."""
    found = np.zeros((coupling.groups, coupling.width))
    for member in coupling.members:
        op, slot = member.operand
        array = state.graph.constant(op.inputs[slot])
        if member.role == "v" and array.size == array.shape[member.axes[-1]]:
            found += array.reshape(-1)[member.index].astype(np.float64)
    return found
