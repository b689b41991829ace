"""analyse-losses: for every coupling, what each width would cost, from the moments."""

from __future__ import annotations

from dataclasses import dataclass, replace

from toastc.plans.sites import Coupling
from toastc.system.cores import beside_each_other

from ..state import State, taken
from .losses import Loss, loss_of
from .sides import at_once


@dataclass(frozen=True)
class AnalyseLosses:
    """Find the best choice for every width of every coupling, and what it loses."""

    int8: bool = taken(False, "int8")  # what consumers take will be rounded
    name = "analyse-losses"

    def cost(self, state: State) -> float:
        widths = [c.groups * c.width for site in state.sites for c in site.couplings if c.name == "hidden" and c.prunable]
        return float(4 * sum(width**3 for width in widths) / max(state.graph.totals()[0], 1))

    def __call__(self, state: State) -> State:
        moments = state.moments
        assert moments is not None
        pairs = [(f"{s.name}.{c.name}", c) for s in state.sites for c in s.couplings if c.prunable]

        def analyse(pair: tuple[str, Coupling]) -> Loss | None:
            name, coupling = pair
            return loss_of(state.graph, coupling, moments.of(name), self.int8)

        found: dict[str, Loss | None] = {}
        for (name, _), loss in zip(pairs, beside_each_other(analyse, pairs, at_once(moments.largest)), strict=True):
            found[name] = loss
            state.tell(self.name, len(found) / len(pairs))
        return replace(state, losses={name: loss for name, loss in found.items() if loss is not None})
