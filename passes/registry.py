"""The passes there are, and passes as text, both ways: `score-weights{by=l1},plan-ratios`.

Names are those of the built-in passes and of the entry-point group `toastc.passes`; options are the fields of the
pass's dataclass. Matching always runs first and need not be spelled.
"""

from __future__ import annotations

import re
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any

from toastc.system.errors import ToastcError
from toastc.system.vocabulary import Json

from .analyse.analyse import AnalyseLosses
from .analyse.collect import CollectMoments
from .analyse.gains import MeasureGains
from .analyse.times import TimeBlocks
from .analyse.white import AssumeWhite
from .choose.allocate import AllocateWidths
from .choose.losses import PlanLosses
from .choose.ratios import PlanRatios
from .choose.search import SearchWidths
from .choose.selections import PlanSelections
from .match import MatchSites
from .recover.biases import FoldBiases
from .recover.consumers import FoldConsumers
from .recover.refit import RefitConsumers
from .score.moments import ScoreMoments
from .score.share import ShareScores
from .score.taylor import ScoreTaylor
from .score.tokens import ScoreTokens
from .score.weights import ScoreWeights
from .state import Pass

BUILT_IN: tuple[type, ...] = (
    MatchSites, ScoreWeights, PlanRatios, CollectMoments, AnalyseLosses, MeasureGains, AllocateWidths, PlanLosses,
    RefitConsumers, ScoreMoments, FoldConsumers, TimeBlocks, SearchWidths, AssumeWhite, ScoreTaylor, ScoreTokens, ShareScores,
    FoldBiases, PlanSelections,
)  # fmt: skip
GROUP = "toastc.passes"
ONE = re.compile(r"\s*([\w-]+)\s*(?:\{([^{}]*)\})?\s*(,|$)")


def known_passes() -> dict[str, type]:
    found = {p.name: p for p in entry_points(group=GROUP)}
    return {cls.name: cls for cls in BUILT_IN} | {name: point.load() for name, point in found.items()}  # type: ignore[attr-defined]


def parse_passes(text: str) -> tuple[Pass, ...]:
    """The passes a text spells, matching in front."""
    known = known_passes()
    made: list[Any] = []
    at = 0
    while at < len(text):
        found = ONE.match(text, at)
        if found is None:
            raise ToastcError(f'passes: can not read "{text[at:]}"; write name{{option=value}},name')
        name, options = found[1], found[2]
        if name not in known:
            raise ToastcError(f'passes: no pass is called "{name}"; there are {", ".join(sorted(known))}')
        made.append(build(known[name], name, options or ""))
        at = found.end()
    return with_matching(tuple(made))


def with_matching(passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
    """The others speak of sites: matching runs first."""
    return passes if passes and isinstance(passes[0], MatchSites) else (MatchSites(), *passes)


def print_passes(passes: tuple[Pass, ...]) -> str:
    """The text that spells these passes: options that are as by default, and plain matching, are left out."""
    return ",".join(map(spelled, passes[1:] if passes[:1] == (MatchSites(),) else passes))


def spelled(step: Any) -> str:
    own = [(f.name, getattr(step, f.name), f.default) for f in fields(step)]
    options = ",".join(
        f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value, usual in own if value != usual
    )
    return f"{step.name}{{{options}}}" if options else str(step.name)


def build(cls: type, name: str, options: str) -> Any:
    types = {f.name: f.type if isinstance(f.type, str) else getattr(f.type, "__name__", "") for f in fields(cls)}
    given: Json = {}
    for part in filter(None, (p.strip() for p in options.split(","))):
        key, equals, value = part.partition("=")
        if not equals or key.strip() not in types:
            raise ToastcError(f'passes: {name} has no option "{key.strip()}"; it has {", ".join(types) or "none"}')
        given[key.strip()] = converted(value.strip(), types[key.strip()], f"{name}.{key.strip()}")
    return cls(**given)


def converted(value: str, kind: str, what: str) -> Any:
    try:
        if kind == "bool":
            return {"true": True, "false": False}[value.lower()]
        return int(value) if kind == "int" else float(value) if kind == "float" else value
    except (ValueError, KeyError):
        raise ToastcError(f"passes: {what} must be {kind}, got {value}") from None
