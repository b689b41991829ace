"""Which tokens are sampled to score FFN channels by, and what guides the score: the class token's attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from toastc.graphs import Guide
from toastc.graphs.protocols import Reader
from toastc.plans.sites import Site
from toastc.system.errors import CannotShrink, ToastcError

from ..shrink.selections import guide_of

GUIDES, BALANCES = ("auto", "yes", "no"), ("paper", "code")


def check_sample(name: str, guide: str, sample: float, deepest: float, balance: str) -> None:
    if guide not in GUIDES or balance not in BALANCES:
        known = f"guide is one of {', '.join(GUIDES)}, balance of {', '.join(BALANCES)}"
        raise ToastcError(f"{name}: guide={guide}, balance={balance}; {known}")
    if not (0 < sample <= 1 and 0 < deepest <= 1):
        raise ToastcError(f"{name}: sample and deepest are shares of the tokens, in (0, 1]")


def balanced(how: str, patches: int) -> tuple[float, float]:
    """The weights of the class token's own channel and of the mean over the others."""
    return (2.0, 1.0) if how == "paper" else (1 / (1 + patches), patches / (1 + patches))


def guided_by(graph: Reader, sites: Sequence[Site], ffn: Site) -> Guide | None:
    """Where the class token's attention in the block of an FFN can be read, if it can."""
    before = [s for s in sites[: sites.index(ffn)] if s.kind == "attention"]
    try:
        return guide_of(graph, before[-1] if before else None, ffn.name)
    except CannotShrink:
        return None


def tokens_of(graph: Reader, site: Site) -> int | None:
    """How many tokens of one image an FFN works on; None where that is not known when it is compiled."""
    op = site.couplings[0].members[0].operand[0]
    value = op.inputs[0]
    shape = graph.shape(value)
    if len(shape) < 3 or shape[0] != graph.batch or any(graph.varies(value)[1:]):
        return None
    return math.prod(shape[1:-1])


def sampled(tokens: int, leading: int, share: float, seed: list[int]) -> np.ndarray:
    """Positions of that share of the tokens behind the leading ones, drawn at random."""
    count = max(1, round(share * (tokens - leading)))
    drawn = np.random.default_rng(seed).choice(tokens - leading, count, replace=False)
    return np.sort(leading + drawn).astype(np.int32)
