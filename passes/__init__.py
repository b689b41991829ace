"""The recipes: visible tuples of passes. Each says why its passes stand in this order.

Every recipe starts by matching, because the others speak of sites; scores come before the plan that reads them;
nothing edits the graph before `shrink`, which the driver appends when there is a plan to carry out.
"""

from __future__ import annotations

from toastc.errors import ToastcError
from toastc.pipeline import Pass

from .allocate_widths import AllocateWidths
from .analyse_losses import AnalyseLosses
from .collect_moments import CollectMoments
from .match import MatchSites
from .measure_gains import MeasureGains
from .plan_losses import PlanLosses
from .plan_ratios import PlanRatios
from .refit_consumers import RefitConsumers
from .score_weights import ScoreWeights
from .shrink import Shrink
from .spelling import parse_passes

# Sizes of both sides of each channel, multiplied: the strongest score that needs no data.
MAGNITUDE: tuple[Pass, ...] = (MatchSites(), ScoreWeights(by="l2"), PlanRatios())

# ToaSt's score: distance to the geometric median of the head's coupled weights.
GEOMETRIC: tuple[Pass, ...] = (MatchSites(), ScoreWeights(by="geometric-median"), PlanRatios())

# What is lost at every width is known in closed form from the moments of calibration data; how far it reaches is measured;
# then a budget is spread, and what stays makes up for what goes.
CALIBRATED: tuple[Pass, ...] = (
    MatchSites(), CollectMoments(), AnalyseLosses(), MeasureGains(), AllocateWidths(), PlanLosses(),
)  # fmt: skip

# The same without data, on synthetic images.
SYNTHETIC: tuple[Pass, ...] = (
    MatchSites(), CollectMoments(synthetic=512), AnalyseLosses(), MeasureGains(images=32), AllocateWidths(), PlanLosses(),
)  # fmt: skip

RECIPES: dict[str, tuple[Pass, ...]] = {
    "default": MAGNITUDE,
    "calibrated": CALIBRATED,
    "synthetic": SYNTHETIC,
    "magnitude": MAGNITUDE,
    "magnitude-l1": (MatchSites(), ScoreWeights(by="l1"), PlanRatios()),
    "geometric-median": GEOMETRIC,
}


def recipe(name: str, data: bool = False) -> tuple[Pass, ...]:
    """The passes of a recipe; the default one uses calibration data where there is some."""
    if name == "default" and data:
        return CALIBRATED
    if name not in RECIPES:
        raise ToastcError(f"no recipe is called {name}; there are {', '.join(RECIPES)}")
    return RECIPES[name]


__all__ = [
    "RECIPES", "AllocateWidths", "AnalyseLosses", "CollectMoments", "MatchSites", "MeasureGains", "PlanLosses", "PlanRatios",
    "RefitConsumers", "ScoreWeights", "Shrink", "parse_passes", "recipe",
]  # fmt: skip
