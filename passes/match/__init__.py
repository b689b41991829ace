"""match: find every attention and FFN, and say why the others can not be shrunk."""

from __future__ import annotations

from dataclasses import dataclass, replace

from toastc.graphs import Graph
from toastc.pipeline import State
from toastc.sites import Reject, Site

from .attention import find_attention
from .couplings import Ledger
from .ffn import classes_of, find_ffn
from .flow import Flow
from .names import unique


@dataclass(frozen=True)
class MatchSites:
    """Find attention and FFN by pushing channel labels through the graph."""

    name = "match-sites"

    def __call__(self, state: State) -> State:
        ledger, sites, rejects = match(state.graph)
        return replace(state, matched=ledger, sites=sites, rejects=rejects)


def match(graph: Graph) -> tuple[Ledger, tuple[Site, ...], tuple[Reject, ...]]:
    ledger = Ledger(Flow(graph).run())
    attention, rejected = find_attention(ledger)
    ffn, more = find_ffn(ledger, classes_of(attention))
    order = {op: i for i, op in enumerate(graph.ops)}
    found = sorted(attention + ffn, key=lambda s: min(order[m.operand[0]] for c in s.couplings for m in c.members))  # type: ignore[index]
    names = unique([s.name for s in found], [s.kind for s in found])
    sites = tuple(replace(s, name=n) for s, n in zip(found, names, strict=True))
    return ledger, sites, tuple(rejected + more)
