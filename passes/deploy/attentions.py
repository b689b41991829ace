"""The attentions of a graph by their sizes, before and after a plan: what decides which kernel they get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toastc.graphs.protocols import Reader
from toastc.plans.plan import Plan
from toastc.plans.sites import Coupling, Site
from toastc.timing.kernels import Attention

from ..match.attention import is_softmax
from .recognise import Unfusable, recognise_attention, through


def attentions(graph: Reader, sites: Sequence[Site], plan: Plan | None = None) -> list[Attention]:
    found = []
    for site in (s for s in sites if s.kind == "attention"):
        share = {c.name: 1.0 if c.reason else kept_of(plan, site, c) / c.width for c in site.every}
        heads = round(site.head_count * share.get("heads", 1.0))
        sizes = (site.head_dim, site.v_head_dim)  # a coupling may hold two channels at a time
        macs = [c.channel_macs * heads * c.width // size for c, size in zip(site.couplings, sizes, strict=True)]
        d_qk, d_v = (round(size * share[c.name]) for c, size in zip(site.couplings, sizes, strict=True))
        found.append(Attention(site.name, heads, *site.tokens, d_qk, d_v, is_biased(graph, site.wiring), *macs))
    return found


def kept_of(plan: Plan | None, site: Site, coupling: Coupling) -> int:
    choice = None if plan is None else plan.get(site.name, coupling.name)
    return coupling.width if choice is None else choice.width


def is_biased(graph: Reader, wiring: Any) -> bool:
    """Is anything added to the scores?"""
    op = wiring.mix
    if op.attention is not None:
        return any(len(op.inputs) > slot and op.inputs[slot] is not None for slot in op.attention.masks)
    softmax, _ = through(graph, op.inputs[wiring.scores_at])
    if softmax is None or not is_softmax(softmax):
        return True
    try:
        return bool(recognise_attention(graph, op, wiring.scores_at, softmax).added)
    except Unfusable:
        return True
