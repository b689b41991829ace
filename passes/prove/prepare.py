"""The dense graph made ready for a proof: tokens merged as the plan says, and the pruned weights padded into it."""

from __future__ import annotations

from collections.abc import Sequence

from toastc.graphs.protocols import Graph, Reader, bias_of
from toastc.plans.plan import Plan
from toastc.plans.sites import Site

from ..match import match
from ..tokens.merge import merge_tokens
from .padding import Padded, pad_back


def with_biases(dense: Graph, sites: Sequence[Site], plan: Plan) -> bool:
    """Gives consumers a bias that take in one by the plan; were there some that had none?"""
    named = [(c, choice) for s in sites for c in s.couplings if (choice := plan.get(s.name, c.name)) is not None]
    ops = dict.fromkeys(m.operand[0] for c, choice in named if choice.shifts for m in c.members if m.role == "out")
    bare = [op for op in ops if bias_of(dense, op) is None]
    for op in bare:
        dense.insert_bias(op)
    return bool(bare)


def padded_into(dense: Graph, pruned: Reader, plan: Plan) -> tuple[Graph, tuple[Site, ...], Padded, list[str]]:
    """The graph, its sites, what was padded, and what the pruned graph chooses at run time and hands to it."""
    chosen: list[str] = []
    if plan.merges:
        dense, merged = merge_tokens(dense, plan.merges, held=True)
        chosen = merged.choices
    sites = match(dense)[1]
    if with_biases(dense, sites, plan):
        dense = dense.reopened()
        sites = match(dense)[1]
    return dense, sites, pad_back(dense, sites, pruned, match(pruned)[1], plan), chosen
