"""The dense graph made ready for a proof: tokens merged as the plan says, and the pruned weights padded into it."""

from __future__ import annotations

from toastc.graphs.protocols import Graph, Reader
from toastc.plans.plan import Plan
from toastc.plans.sites import Site

from ..match import match
from ..tokens.merge import merge_tokens
from .padding import Padded, pad_back


def padded_into(dense: Graph, pruned: Reader, plan: Plan) -> tuple[Graph, tuple[Site, ...], Padded, list[str]]:
    """The graph, its sites, what was padded, and what the pruned graph chooses at run time and hands to it."""
    chosen: list[str] = []
    if plan.merges:
        dense, merged = merge_tokens(dense, plan.merges, held=True)
        chosen = merged.choices
    sites = match(dense)[1]
    return dense, sites, pad_back(dense, sites, pruned, match(pruned)[1], plan), chosen
