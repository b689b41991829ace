"""analyse-losses: for every coupling, what each width would cost, from the moments."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from toastc.plans.sites import Coupling

from ..state import State, taken
from .losses import Loss, loss_of


@dataclass(frozen=True)
class AnalyseLosses:
    """Find the best choice for every width of every coupling, and what it loses."""

    int8: bool = taken(False, "int8")  # what consumers take will be rounded
    name = "analyse-losses"

    def __call__(self, state: State) -> State:
        moments = state.moments
        assert moments is not None
        pairs = [(f"{s.name}.{c.name}", c) for s in state.sites for c in s.couplings if c.prunable]

        def analyse(pair: tuple[str, Coupling]) -> Loss | None:
            name, coupling = pair
            return loss_of(state.graph, coupling, moments.of(name), self.int8)

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            found = dict(zip([name for name, _ in pairs], pool.map(analyse, pairs), strict=True))
        return replace(state, losses={name: loss for name, loss in found.items() if loss is not None})
