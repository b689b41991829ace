"""plan-losses: carry out the best choice for the width of every coupling.

Couplings of which nothing could be watched (a query that is a learnt constant) keep their largest channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from toastc.plans.plan import Choice, Keep, Plan
from toastc.system.errors import ToastcError

from ..analyse.losses import consumed
from ..analyse.members import Weights
from ..score.weights import ScoreWeights
from ..state import State
from .ratios import best


@dataclass(frozen=True)
class PlanLosses:
    """Rotate, keep and fold: what loses least at the widths that were set."""

    name = "plan-losses"

    def __call__(self, state: State) -> State:
        choices: dict[str, Choice] = {}
        notes: list[str] = []
        heads = {s.name: self.heads(state, s.name) for s in state.sites if f"{s.name}.heads" in state.widths}
        for name, kept in heads.items():
            choices[f"{name}.heads"] = Keep(kept[None])
        for site in state.sites:
            for coupling in site.couplings:
                name = f"{site.name}.{coupling.name}"
                gone = site.name in heads
                if name not in state.widths and not (gone and coupling.name == "vo" and name in state.losses):
                    continue
                width = state.widths.get(name, coupling.width)
                if name in state.losses:
                    groups = heads[site.name].tolist() if gone else range(coupling.groups)
                    choice = state.losses[name].choose(width, groups)
                    choices[name] = consumed(state.graph, coupling, state.taps.get(f"{name}/out"), choice)
                else:
                    choices[name] = Keep(best(ScoreWeights().score(Weights(state.graph), coupling), width))
                    notes.append(f"{name}: could not be watched; its largest channels stay")
        return replace(state, plan=Plan(choices), notes=(*state.notes, *notes))

    def heads(self, state: State, site: str) -> np.ndarray:
        """The heads that can least be done without."""
        loss = state.losses.get(f"{site}.vo")
        if loss is None:
            raise ToastcError(f"{site}.heads: nothing is known of its values; use another recipe, or set its ratio to 0")
        return np.sort(loss.order[-state.widths[f"{site}.heads"] :])
