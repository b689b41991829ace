"""plan-selections: the FFN channels that are read are chosen at run time, image by image or batch by batch.

This is ToaSt's token channel selection as the paper runs it; `docs/toast.md` says what that does to accuracy. The
ratios of `hidden` (what fc2 reads) and `inputs` (what fc1 reads) say how much is left unread; no weight is cut, so one
half of what the static form saves is saved. The tokens that scores are taken from are drawn once, at compile time: a
share `sample` of them in the first block, growing to `deepest` in the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from toastc.graphs import Guide
from toastc.graphs.protocols import Reader
from toastc.plans.choices import PER
from toastc.plans.plan import Choice, Plan, Select
from toastc.plans.ratios import narrowed
from toastc.plans.sites import Site
from toastc.system.errors import CannotShrink, ToastcError

from ..shrink.selections import guide_of
from ..state import State
from ..tokens.layout import leading_tokens

GUIDES, BALANCES = ("auto", "yes", "no"), ("paper", "code")


@dataclass(frozen=True)
class PlanSelections:
    """Choose the FFN channels that are read at run time, per image or per batch (ToaSt's TCS)."""

    per: str = "image"
    sample: float = 0.02  # of the tokens; at least one
    deepest: float = 0.2  # of the tokens in the last block
    guide: str = "auto"  # by the class token's attention: auto, yes or no
    balance: str = "paper"  # of the class token against the others: 2 and 1, or as in the code 1/(1+P) and P/(1+P)
    masks: bool = False  # zero the channels that fc1 does not read in the residual stream as well
    name = "plan-selections"

    def __post_init__(self) -> None:
        if self.per not in PER:
            raise ToastcError(f"plan-selections: per={self.per}; it is one of {', '.join(PER)}")
        check_sample(self.name, self.guide, self.sample, self.deepest, self.balance)

    def __call__(self, state: State) -> State:
        assert state.ratios is not None
        ffns = [s for s in state.sites if s.kind == "ffn"]
        counts = {name: count for name, _, count in narrowed(state.ratios, state.sites)}
        choices: dict[str, Choice] = dict(state.plan.choices)
        leading, notes = leading_tokens(state.graph), list(state.notes)
        if self.guide == "yes" and not leading:
            raise ToastcError("plan-selections: guide=yes, but no class token was found in front of the others")
        for depth, site in enumerate(ffns):
            for coupling in (c for c in site.every if f"{site.name}.{c.name}" in counts):
                name = f"{site.name}.{coupling.name}"
                tokens = tokens_of(state.graph, site)
                if tokens is None:
                    raise ToastcError(f"plan-selections: {name}: its tokens and images can not be told apart, or vary in number")
                guided = self.guide != "no" and 0 < leading < tokens
                guided = guided and guided_by(state.graph, state.sites, site) is not None
                share = self.sample + (self.deepest - self.sample) * depth / max(len(ffns) - 1, 1)
                chosen = sampled(tokens, leading if guided else 0, share, [state.seed, depth])
                masks = self.masks and coupling.name == "inputs"
                width = counts[name]
                weights = balanced(self.balance, tokens - leading)
                choices[name] = Select(width, coupling.width, self.per, chosen, guided, weights, masks)
        if self.per == "batch" and any(isinstance(c, Select) for c in choices.values()):
            notes.append("channels are chosen once for each batch: what an image gets depends on the images beside it")
        return replace(state, plan=Plan(choices), notes=tuple(notes))


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
