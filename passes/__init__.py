"""The recipes: visible tuples of passes. Each says why its passes stand in this order.

Every recipe starts by matching, because the others speak of sites; scores come before the plan that reads them;
nothing edits the graph before `shrink`, which the driver appends when there is a plan to carry out.
"""

from __future__ import annotations

from toastc.errors import ToastcError
from toastc.pipeline import Pass

from .match import MatchSites
from .plan_ratios import PlanRatios
from .score_weights import ScoreWeights
from .shrink import Shrink
from .spelling import parse_passes

# Sizes of both sides of each channel, multiplied: the strongest score that needs no data.
MAGNITUDE: tuple[Pass, ...] = (MatchSites(), ScoreWeights(by="l2"), PlanRatios())

# ToaSt's score: distance to the geometric median of the head's coupled weights.
GEOMETRIC: tuple[Pass, ...] = (MatchSites(), ScoreWeights(by="geometric-median"), PlanRatios())

RECIPES: dict[str, tuple[Pass, ...]] = {
    "default": MAGNITUDE,
    "magnitude": MAGNITUDE,
    "magnitude-l1": (MatchSites(), ScoreWeights(by="l1"), PlanRatios()),
    "geometric-median": GEOMETRIC,
}


def recipe(name: str) -> tuple[Pass, ...]:
    if name not in RECIPES:
        raise ToastcError(f"no recipe is called {name}; there are {', '.join(RECIPES)}")
    return RECIPES[name]


__all__ = ["RECIPES", "MatchSites", "PlanRatios", "ScoreWeights", "Shrink", "parse_passes", "recipe"]
