"""match: find every attention and FFN, and say why the others can not be shrunk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from toastc.graphs.protocols import Reader
from toastc.plans.sites import Reject, Site
from toastc.system.errors import ToastcError

from ..state import State
from .attention import find_attention, refusals
from .couplings import Ledger
from .ffn import classes_of, find_ffn
from .names import unique
from .rules import walk

SPARE = ("", "first", "stages")
SPARED = "the first block stays whole"


@dataclass(frozen=True)
class MatchSites:
    """Find attention and FFN by pushing channel labels through the graph; `spare` the first block, or that of every stage."""

    spare: str = ""  # "first" or "stages"
    name = "match-sites"

    def __post_init__(self) -> None:
        if self.spare not in SPARE:
            raise ToastcError(f"match-sites: spare={self.spare}; it is first or stages")

    def __call__(self, state: State) -> State:
        ledger, sites, rejects = match(state.graph)
        return replace(state, matched=ledger, sites=spared(sites, self.spare), rejects=rejects)


def spared(sites: tuple[Site, ...], which: str) -> tuple[Site, ...]:
    """The sites, the first of each kind (of each stage: where the width of the stream changes) left whole."""
    if not which:
        return sites
    seen: set[tuple[str, int]] = set()
    found = []
    for site in sites:
        width = site.couplings[-1].channel_params  # of one channel: it follows the width of the residual stream
        stage = site.kind, width if which == "stages" else 0
        if stage not in seen:
            site = replace(site, couplings=tuple(map(kept_whole, site.couplings)), heads=kept_whole(site.heads),
                           inputs=kept_whole(site.inputs))  # fmt: skip
        seen.add(stage)
        found.append(site)
    return tuple(found)


def kept_whole(coupling: Any) -> Any:
    return coupling if coupling is None or coupling.reason else replace(coupling, reason=SPARED)


def match(graph: Reader) -> tuple[Ledger, tuple[Site, ...], tuple[Reject, ...]]:
    ledger = Ledger(walk(graph))
    every, rejected = find_attention(ledger)
    attention, whole = ([s for s in every if any(c.prunable for c in s.couplings) is cut] for cut in (True, False))
    ffn, more = find_ffn(ledger, classes_of(attention))
    order = {op: i for i, op in enumerate(graph.ops)}
    found = sorted(attention + ffn, key=lambda s: min(order[m.operand[0]] for c in s.couplings for m in c.members))
    names = unique([s.name for s in found], [s.kind for s in found])
    sites = tuple(replace(s, name=n) for s, n in zip(found, names, strict=True))
    refused = [r for s in (*sites, *whole) if s.kind == "attention" for r in refusals(s)]
    return ledger, sites, tuple(refused + rejected + more)
