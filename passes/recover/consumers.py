"""fold-consumers: what stays takes over what goes.

    least-squares    gone = B kept + c, fitted on calibration data; B goes into the consumer's weight, c into its bias
    mean             gone = its mean, which goes into the consumer's bias

Between q and k, where no bias stands, only the weight is folded, head by head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from toastc.plans.plan import Choice, Keep, Plan
from toastc.plans.sites import Coupling
from toastc.system.errors import ToastcError

from ..analyse.algebra import fitted
from ..analyse.covariances import covariance_of
from ..analyse.losses import folded
from ..state import State

WAYS = ("least-squares", "mean")


@dataclass(frozen=True)
class FoldConsumers:
    """Let the channels that stay take over what the others did: least-squares, or their mean alone."""

    by: str = "least-squares"
    name = "fold-consumers"

    def __post_init__(self) -> None:
        if self.by not in WAYS:
            raise ToastcError(f"fold-consumers: by={self.by}; it is one of {', '.join(WAYS)}")

    def __call__(self, state: State) -> State:
        choices: dict[str, Choice] = dict(state.plan.choices)
        for site in state.sites:
            for coupling in site.couplings:
                choice = state.plan.get(site.name, coupling.name)
                if isinstance(choice, Keep) and choice.exact:
                    name = f"{site.name}.{coupling.name}"
                    choices[name] = self.fold(state, name, coupling, choice, state.plan.groups(site.name, coupling))
        return replace(state, plan=Plan(choices))

    def fold(self, state: State, name: str, coupling: Coupling, choice: Keep, groups: Sequence[int]) -> Keep:
        moments = state.moments
        if moments is None:
            raise ToastcError("fold-consumers: collect-moments must run before it")
        if coupling.name == "qk":
            if self.by == "mean" or not coupling.rotatable or f"{name}/q" not in moments:
                return choice
            second = moments[f"{name}/q"].second
            folds = [fitted(m[:, kept], m[np.ix_(kept, kept)]) for m, kept in zip(second, choice.index, strict=True)]
            return replace(choice, fold=np.stack(folds))
        consumers = [m for m in coupling.members if m.role == "out"]
        if len(consumers) != 1 or f"{name}/out" not in moments:
            return choice
        sums = moments[f"{name}/out"]
        if self.by == "least-squares":
            return folded(choice.index, groups, sums.mean, covariance_of(sums))
        gone = np.ones_like(sums.mean)
        for g in groups:
            gone[g, choice.index[g]] = 0
        return replace(choice, shift=sums.mean * gone)
