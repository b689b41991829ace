"""Attention sites: a mix whose weights descend from a contraction, through a softmax."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from toastc.graphs import Kind, Op, Role
from toastc.graphs.protocols import Reader
from toastc.plans.sites import Coupling, Reject, Site

from .couplings import Block, Ledger, coupling, linear_ops, read_by_one
from .flow import Flow
from .heads import beyond, heads_coupling
from .names import site_name
from .records import Contraction, Mix

NOT_SILENT = "a constant or an activation makes something of its channels where their weights are nothing"

TAKEN = "another attention has its channels, and they go with that one's"


def is_softmax(op: Op) -> bool:
    return op.kind is Kind.REDUCE and Role.SOFTMAX in op.role


def ancestors(flow: Flow, op: Op, slot: int, limit: int = 60) -> list[Op]:
    """The ops above one operand, nearest first, not looking past other products, and linears but those over heads."""
    graph = flow.graph
    found: list[Op] = []
    todo = [graph.producer(op.inputs[slot])]
    while todo and len(found) < limit:
        above = todo.pop(0)
        if above is None or above in found:
            continue
        found.append(above)
        if above.kind in (Kind.PRODUCT, Kind.ATTENTION) or (above.kind is Kind.LINEAR and above not in flow.talking):
            continue
        todo += [graph.producer(v) for v in above.inputs if v is not None]
    return found


def find_attention(ledger: Ledger) -> tuple[list[Site], list[Reject]]:
    flow, graph = ledger.flow, ledger.flow.graph
    by_op = {c.op: c for c in flow.contractions}
    sites: list[Site] = []
    rejects: list[Reject] = []
    used: set[Op] = set()
    for mix in flow.mixes:
        contraction = softmax = None
        if mix.slot < 0:
            contraction, softmax = by_op.get(mix.op), mix.op
            masks = [slot for slot in mix.op.attention.masks if slot < len(mix.op.inputs)] if mix.op.attention else []
            candidates = [mix.op, *(o for slot in masks for o in ancestors(flow, mix.op, slot) if o.kind is Kind.PRODUCT)]
        else:
            above = ancestors(flow, mix.op, mix.slot)
            softmax = next((o for o in above if is_softmax(o)), None)
            candidates = [o for o in above if o.kind is Kind.PRODUCT]
            contraction = queries_and_keys(graph, [by_op[o] for o in candidates if o in by_op])
        if softmax is None or not candidates:
            continue
        used.update([mix.op, softmax, *candidates])
        sites.append(build(ledger, mix, contraction, softmax, candidates))
    for op in graph.ops:
        if op.kind is Kind.ATTENTION and op not in used:
            reasons = [p.reason for p in flow.pins if p.op is op]
            rejects.append(Reject(str(op), (reasons or ["its query, key and value do not come from linears"])[0]))
        if op.kind is Kind.OPAQUE and op.role & (Role.SOFTMAX | Role.ATTENTION):
            rejects.append(Reject(str(op), f"{op} {op.why}"))
        if is_softmax(op) and op not in used:
            above = [o for o in ancestors(flow, op, 0) if o.kind is Kind.PRODUCT or sum(p.op is o for p in flow.pins) > 1]
            if above:
                near = [op, *above, *(user for user, _ in graph.users(op.outputs[0]))]
                reasons = [p.reason for p in flow.pins if p.op in near]
                rejects.append(Reject(str(op), (reasons or ["no product of it and a value from a linear was found"])[0]))
    return drop_shared(ledger, sites), rejects


def drop_shared(ledger: Ledger, sites: list[Site]) -> list[Site]:
    """Queries, keys or values that two attentions share are cut with the first of them. One whose weights are all used before is
    no site of its own.
    """
    taken = np.zeros(ledger.flow.classes.size, bool)
    found = []
    for site in sites:
        own = []
        for c in site.couplings:
            if c.classes is not None and not c.reason and taken[c.classes].any():
                c = replace(c, reason=TAKEN)
                site = replace(site, heads=site.heads and replace(site.heads, reason=site.heads.reason or c.reason))
            own.append(c)
        for c in own:
            if c.classes is not None and not c.reason:
                taken[c.classes] = True
        if not all(c.reason == TAKEN for c in own):
            found.append(replace(site, couplings=tuple(own)))
    return found


def queries_and_keys(graph: Reader, found: list[Contraction]) -> Contraction | None:
    """Of the products of channels above a softmax that of queries and keys: others are with constants (tables of positions)."""
    learnt = [any(v is None or graph.is_constant(v) for v in c.op.inputs[:2]) for c in found]
    return next((c for c, constant in zip(found, learnt, strict=True) if not constant), found[0] if found else None)


def refusals(site: Site) -> list[Reject]:
    """The couplings of an attention that can not be cut, or not well. Its `heads` are told of with the site."""
    name = site.name or str(site.wiring.mix)
    rejects = [Reject(f"{name}.{c.name}", c.reason) for c in site.couplings if c.reason]
    for c, width in zip(site.couplings, (site.head_dim, site.v_head_dim), strict=True):
        if not c.reason and c.width == 1 < width:
            rejects.append(Reject(f"{name}.{c.name}", "one number meets all channels of a head, which hang together by it"))
    return rejects


def build(ledger: Ledger, mix: Mix, contraction: Contraction | None, softmax: Op, candidates: list[Op]) -> Site:
    """`candidates`: the products above the softmax, nearest first."""
    graph, scores = ledger.flow.graph, contraction.op if contraction is not None else candidates[0]
    qk_macs, vo_macs, tokens = product_macs(graph, mix, scores)
    others = [] if contraction is None else products_of(ledger, contraction)
    qk_block = None if contraction is None else ledger.block(contraction.q)
    qk = qk_coupling(ledger, scores, qk_block, others, qk_macs)
    vo_block = ledger.block(mix.value)
    vo = vo_coupling(ledger, mix, vo_block, vo_macs)
    if qk.classes is not None and vo.classes is not None and np.isin(qk.classes, vo.classes).any():
        qk, vo = (replace(c, reason=c.reason or "its keys are its values") for c in (qk, vo))
    reason = qk.reason or vo.reason or beyond(ledger, contraction, others, candidates)
    heads = heads_coupling(ledger, mix, contraction, qk_block, vo_block, reason)
    ops = linear_ops((*qk.members, *vo.members))
    name = site_name([o.path for o in ops], "attn")
    macs = (qk.groups * qk.width * qk.channel_macs if qk.members else qk_macs) + vo.groups * vo.width * vo.channel_macs
    params = sum(c.groups * c.width * c.channel_params for c in (qk, vo) if c.members)
    apart = None if contraction is None else contraction.heads  # images may share their axis
    count = len(mix.value) if apart is None else len(np.unique(apart))
    head_dim = contraction.q.shape[1] if contraction is not None else scores_dim(graph, mix, scores)
    wiring = AttentionWiring(scores, softmax, mix.op, scores_at=mix.slot)
    scale = mix.op.attention.scale if mix.op.attention is not None else None
    return Site(
        name, "attention", (qk, vo), macs, params, head_count=count, head_dim=head_dim, v_head_dim=mix.value.shape[1],
        heads=heads, scale=scale if isinstance(scale, float) else None, tokens=tokens, wiring=wiring,
    )  # fmt: skip


def products_of(ledger: Ledger, contraction: Contraction) -> list[Contraction]:
    """Other products that the same queries or keys go into: with positions, or of another attention."""
    own = ledger.root[contraction.q]
    return [c for c in ledger.flow.contractions if c.op is not contraction.op and np.isin(ledger.root[c.q], own).any()]


def qk_coupling(ledger: Ledger, scores: Op, block: Block | None, others: list[Contraction], macs: int) -> Coupling:
    if block is None:
        reason = blocked_above(ledger, scores) or next((p.reason for p in ledger.flow.pins if p.op is scores), "")
        return Coupling("qk", 1, 1, (), reason or "its labels do not reach the product")
    extra = "" if all(adds_nothing(ledger, op) for op in (scores, *(c.op for c in others))) else NOT_SILENT
    macs += sum(c.op.macs if c.op.attention is None else halves(ledger.flow.graph, c.op)[0] for c in others)
    made = coupling(ledger, "qk", block, {"in": "qk", "with": "qk", "out": "qk"}, macs, extra)
    return replace(made, beside=tuple(c.op for c in others), rotatable=made.rotatable and not others)


def vo_coupling(ledger: Ledger, mix: Mix, block: Block, macs: int) -> Coupling:
    same = [m for m in ledger.flow.mixes if m is not mix and np.isin(ledger.root[m.value], block.classes).any()]
    macs += sum(product_macs(ledger.flow.graph, m, m.op)[1] for m in same)
    made = coupling(ledger, "vo", block, {"in": "v", "with": "v", "out": "out"}, macs, "")
    if made.reason or any(m.role == "out" for m in made.members):
        return read_by_one(ledger.flow.graph, made)
    return replace(made, reason="no linear consumes it")


class AttentionWiring:
    def __init__(self, scores: Op, softmax: Op, mix: Op, scores_at: int) -> None:
        self.scores, self.softmax, self.mix, self.scores_at = scores, softmax, mix, scores_at


def adds_nothing(ledger: Ledger, product: Op) -> bool:
    """Does a channel that is gone add nothing to a product?"""
    flow = ledger.flow
    return any(v in flow.silent or (v is not None and flow.graph.is_constant(v)) for v in product.inputs[:2])


def halves(graph: Reader, op: Op) -> tuple[int, int]:
    """MACs of the two products of an attention in one node."""
    spec = op.attention
    assert spec is not None
    last = [
        graph.shape(op.inputs[i])[-1] // (h if spec.layouts[i] == "bn(hd)" else 1)
        for i, h in ((0, spec.heads), (2, spec.kv_heads))
    ]
    total = last[0] + last[1]
    return op.macs * last[0] // total, op.macs * last[1] // total


def product_macs(graph: Reader, mix: Mix, scores: Op) -> tuple[int, int, tuple[int, int]]:
    """MACs of Q.K' and of P.V for one sample, and the numbers of query and key tokens."""
    if mix.slot < 0:
        spec = mix.op.attention
        assert spec is not None
        axis = {"bhnd": 2, "bnhd": 1, "bn(hd)": 1}
        n, m = (graph.shape(mix.op.inputs[i])[axis[spec.layouts[i]]] for i in (0, 1))
        return *halves(graph, mix.op), (n, m)
    shape = graph.shape(scores.outputs[0])
    return scores.macs, mix.op.macs, (shape[-2], shape[-1])


def scores_dim(graph: Reader, mix: Mix, scores: Op) -> int:
    if mix.slot < 0:
        spec = mix.op.attention
        assert spec is not None
        last = graph.shape(mix.op.inputs[0])[-1]
        return last // spec.heads if spec.layouts[0] == "bn(hd)" else last
    left, _, final = scores.spec
    return math.prod(s for x, s in zip(left, graph.shape(scores.inputs[0]), strict=True) if x not in final)


def blocked_above(ledger: Ledger, scores: Op) -> str:
    """Why the operands of the product carry no labels: the nearest pin above it."""
    flow, seen = ledger.flow, []
    by_op: dict[Op, str] = {p.op: p.reason for p in reversed(flow.pins) if p.op is not None}
    for slot in range(2):
        seen += ancestors(flow, scores, slot)
    return next((by_op[o] for o in seen if o in by_op), "")
