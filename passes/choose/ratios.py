"""plan-ratios: keep the highest scores, as many as the ratio file leaves.

    kept = round_to * ceil((1 - ratio) * width / round_to), at most the width, at least 2

Every head keeps equally many channels, so that heads stay one batched product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from toastc.plans.plan import Choice, Keep, Plan
from toastc.plans.ratios import narrowed
from toastc.system.errors import ToastcError

from ..state import State

KINDS = ("", "attention", "ffn")


@dataclass(frozen=True)
class PlanRatios:
    """Keep the best-scored channels of every coupling, as many as the ratios leave."""

    of: str = ""  # "attention" or "ffn": only those
    name = "plan-ratios"
    spends = True  # a budget, or ratios: what stands before it holds for any

    def __post_init__(self) -> None:
        if self.of not in KINDS:
            raise ToastcError(f"plan-ratios: of={self.of}; it is attention or ffn")

    def __call__(self, state: State) -> State:
        assert state.ratios is not None
        choices: dict[str, Choice] = {}
        for name, _, count in narrowed(state.ratios, state.sites):
            if self.of in ("", state.site(name).kind):
                choices[name] = Keep(best(state.scores[name], count))
        return replace(state, plan=Plan(choices))


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the highest scores of each group, in rising order; ties go to the earlier channel."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.sort(order, axis=1)
