"""plan-losses: carry out the best choice for the width of every coupling.

Couplings of which nothing could be watched (a query that is a learnt constant) keep their largest channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from toastc.plans.plan import Choice, Keep, Plan
from toastc.plans.sites import Coupling
from toastc.system.cores import beside_each_other
from toastc.system.errors import ToastcError

from ..analyse.losses import consumed
from ..analyse.members import Weights
from ..analyse.sides import at_once
from ..score.weights import ScoreWeights
from ..state import State
from .ratios import best


@dataclass(frozen=True)
class PlanLosses:
    """Rotate, keep and fold: what loses least at the widths that were set."""

    name = "plan-losses"

    def __call__(self, state: State) -> State:
        heads = {s.name: self.heads(state, s.name) for s in state.sites if f"{s.name}.heads" in state.widths}
        choices: dict[str, Choice] = {f"{name}.heads": Keep(kept[None]) for name, kept in heads.items()}
        notes: list[str] = []
        known: list[tuple[str, Coupling, int, Sequence[int]]] = []  # of which there is a choice that costs least
        for site in state.sites:
            for coupling in site.couplings:
                name = f"{site.name}.{coupling.name}"
                gone = site.name in heads
                if name not in state.widths and not (gone and coupling.name == "vo" and name in state.losses):
                    continue
                width = state.widths.get(name, coupling.width)
                if name in state.losses:
                    known.append((name, coupling, width, heads[site.name].tolist() if gone else range(coupling.groups)))
                else:
                    choices[name] = Keep(best(ScoreWeights().score(Weights(state.graph), coupling), width))
                    notes.append(f"{name}: could not be watched; its largest channels stay")

        def choose(what: tuple[str, Coupling, int, Sequence[int]]) -> Choice:
            name, coupling, width, groups = what
            return consumed(state.graph, coupling, state.taps.get(f"{name}/out"), state.losses[name].choose(width, groups))

        made = beside_each_other(choose, known, at_once(state.moments.largest if state.moments else 1))
        choices |= {name: choice for (name, *_), choice in zip(known, made, strict=True)}
        return replace(state, plan=Plan(choices), notes=(*state.notes, *notes))

    def heads(self, state: State, site: str) -> np.ndarray:
        """The heads that can least be done without."""
        loss = state.losses.get(f"{site}.vo")
        if loss is None:
            raise ToastcError(f"{site}.heads: nothing is known of its values; use another recipe, or set its ratio to 0")
        return np.sort(loss.order[-state.widths[f"{site}.heads"] :])
