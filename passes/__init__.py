"""The recipes: visible tuples of passes. Each says why its passes stand in this order.

Every recipe starts by matching, because the others speak of sites; scores come before the plan that reads them;
nothing edits the graph before `shrink`, which the driver appends when there is a plan to carry out.
"""

from __future__ import annotations

from toastc.system.errors import ToastcError

from .analyse.analyse import AnalyseLosses
from .analyse.collect import CollectMoments
from .analyse.gains import MeasureGains
from .analyse.times import TimeBlocks
from .analyse.white import AssumeWhite
from .choose.allocate import AllocateWidths, spread
from .choose.losses import PlanLosses
from .choose.promise import Judge, inputs_apart, keep_promise
from .choose.ratios import PlanRatios
from .choose.search import SearchWidths
from .choose.selections import PlanSelections
from .choose.tokens import plan_tokens
from .match import MatchSites
from .recover.biases import FoldBiases
from .recover.consumers import FoldConsumers
from .recover.jobs import inputs_to_keep
from .recover.refit import RefitConsumers
from .registry import parse_passes, print_passes, with_matching
from .score.moments import ScoreMoments
from .score.share import ShareScores
from .score.taylor import ScoreTaylor
from .score.tokens import ScoreTokens
from .score.weights import ScoreWeights
from .shrink import Shrink
from .state import Pass, State, run, taken
from .tokens.merge import merge_tokens

# Sizes of both sides of each channel, multiplied: the strongest score that needs no data.
MAGNITUDE: tuple[Pass, ...] = (MatchSites(), ScoreWeights(by="l2"), PlanRatios())

# Distance to the geometric median of the head's coupled weights, ToaSt's score, everywhere.
GEOMETRIC: tuple[Pass, ...] = (MatchSites(), ScoreWeights(by="geometric-median"), PlanRatios())

# ToaSt (docs/toast.md): attention by distance to the geometric median, the first block whole; FFN channels by what they do on
# sampled tokens. Static: scored on calibration data and cut, which takes twice as much as choosing at run time does.
TOAST: tuple[Pass, ...] = (
    MatchSites(spare="first"), ScoreWeights(by="geometric-median", of="attention"), ScoreTokens(), PlanRatios(), FoldBiases(),
)  # fmt: skip

# The same, with FFN channels chosen at run time for every image: no data is needed, and no images meet.
TOAST_IMAGE: tuple[Pass, ...] = (
    MatchSites(spare="first"), ScoreWeights(by="geometric-median", of="attention"), PlanRatios(of="attention"), FoldBiases(),
    PlanSelections(per="image"),
)  # fmt: skip

# As the released code does it: coordinate-wise medians, nothing folded, channels chosen once for each batch.
TOAST_BATCH: tuple[Pass, ...] = (
    MatchSites(spare="first"), ScoreWeights(by="geometric-median", median="coordinate", of="attention"),
    PlanRatios(of="attention"), PlanSelections(per="batch", balance="code"),
)  # fmt: skip

# VBP: channels that hardly vary are replaced by their mean.
VBP: tuple[Pass, ...] = (MatchSites(), CollectMoments(), ScoreMoments(by="variance"), PlanRatios(), FoldConsumers(by="mean"))

# CORP: channels of little energy go, and those that stay are fitted to what they did.
CORP: tuple[Pass, ...] = (MatchSites(), CollectMoments(), ScoreMoments(by="energy"), PlanRatios(), FoldConsumers())

# Truncated SVD of the weights, and the largest FFN channels: what compression without data usually is.
SVD: tuple[Pass, ...] = (MatchSites(), AssumeWhite(), AnalyseLosses(), AllocateWidths(uniform=True), PlanLosses())

# To first order, what the outputs lose without a channel (torch models only); what stays takes over what goes.
TAYLOR: tuple[Pass, ...] = (MatchSites(), CollectMoments(), ScoreTaylor(), PlanRatios(), FoldConsumers())

SEARCH = SearchWidths(minutes=0.0)  # does nothing unless minutes are asked for

# What is lost at every width is known in closed form from the moments of calibration data; how far it reaches is measured;
# then a budget is spread, what stays makes up for what goes, and last every consumer is fitted to the errors before it.
CALIBRATED: tuple[Pass, ...] = (
    MatchSites(), CollectMoments(), AnalyseLosses(), MeasureGains(), TimeBlocks(), AllocateWidths(), SEARCH,
    PlanLosses(), RefitConsumers(),
)  # fmt: skip

# The same without data, on synthetic images. How far an error reaches can be told less well on them.
SYNTHETIC: tuple[Pass, ...] = (
    MatchSites(), CollectMoments(synthetic=256), AnalyseLosses(), MeasureGains(temper=0.5), TimeBlocks(),
    AllocateWidths(), SEARCH, PlanLosses(), RefitConsumers(images=256),
)  # fmt: skip

# A first look: on a few inputs, FFN channels by themselves; what they are together is told where consumers are fitted.
QUICK: tuple[Pass, ...] = (
    MatchSites(), CollectMoments(most=64, alone=True), AnalyseLosses(), MeasureGains(most=2), TimeBlocks(),
    AllocateWidths(), SEARCH, PlanLosses(), RefitConsumers(images=64, enough=8),
)  # fmt: skip
QUICK_SYNTHETIC: tuple[Pass, ...] = (
    MatchSites(), CollectMoments(synthetic=64, alone=True), AnalyseLosses(), MeasureGains(most=2, temper=0.5),
    TimeBlocks(), AllocateWidths(), SEARCH, PlanLosses(), RefitConsumers(images=64, enough=8),
)  # fmt: skip

# What a moments file holds.
MEASURE: tuple[Pass, ...] = (MatchSites(), CollectMoments(), AnalyseLosses(), MeasureGains(always=True))

BY_DATA = {"default": (CALIBRATED, SYNTHETIC), "quick": (QUICK, QUICK_SYNTHETIC)}
RECIPES: dict[str, tuple[Pass, ...]] = {
    "calibrated": CALIBRATED,
    "synthetic": SYNTHETIC,
    "quick": QUICK,
    "toast": TOAST,
    "toast-image": TOAST_IMAGE,
    "toast-batch": TOAST_BATCH,
    "vbp": VBP,
    "corp": CORP,
    "svd": SVD,
    "taylor": TAYLOR,
    "magnitude": MAGNITUDE,
    "magnitude-l1": (MatchSites(), ScoreWeights(by="l1"), PlanRatios()),
    "geometric-median": GEOMETRIC,
}


def recipe(name: str, data: bool = False, images: bool = False) -> tuple[Pass, ...]:
    """The passes of a recipe. The default one, and the quick one, use calibration data where there is some, synthetic images
    where the model takes images, and the weights alone where it takes something else.
    """
    if name in BY_DATA:
        with_data, without = BY_DATA[name]
        return with_data if data else without if images else MAGNITUDE
    if name not in RECIPES:
        raise ToastcError(f"no recipe is called {name}; there are default, {', '.join(RECIPES)}")
    return RECIPES[name]


__all__ = [
    "MEASURE", "RECIPES", "AllocateWidths", "AnalyseLosses", "AssumeWhite", "CollectMoments", "FoldBiases", "FoldConsumers",
    "Judge", "MatchSites", "MeasureGains", "Pass", "PlanLosses", "PlanRatios", "PlanSelections", "RefitConsumers",
    "ScoreMoments", "ScoreTaylor", "ScoreTokens", "ScoreWeights", "SearchWidths", "ShareScores", "Shrink", "State",
    "TimeBlocks", "inputs_apart", "inputs_to_keep", "keep_promise", "merge_tokens", "parse_passes", "plan_tokens",
    "print_passes", "recipe", "run", "spread", "taken", "with_matching",
]  # fmt: skip
