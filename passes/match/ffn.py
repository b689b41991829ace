"""FFN sites: linears, element by element through an activation, into one linear."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toastc.graphs import Kind, Op
from toastc.graphs.protocols import Reader
from toastc.plans.sites import Coupling, Member, Reject, Site

from .couplings import Ledger, cost_of, coupling, linear_ops, read_by_one
from .names import site_name
from .records import Source


def find_ffn(ledger: Ledger, taken: set[int]) -> tuple[list[Site], list[Reject]]:
    """`taken`: classes that belong to attention already."""
    flow = ledger.flow
    sites: list[Site] = []
    rejects: list[Reject] = []
    known = np.zeros(flow.classes.size, bool)
    known[list(taken)] = True
    for consumer in [s for s in flow.sources if s.role == "out"]:
        if (consumer.ids < 0).any():
            continue
        ids = consumer.ids[~known[ledger.root[consumer.ids]]]
        if not len(ids) or consumer.op.inputs[0] not in flow.bent:
            continue
        known[ledger.root[ids]] = True
        made = build(ledger, consumer, ids)
        if isinstance(made, Reject):
            rejects.append(made)
        elif made is not None:
            sites.append(made)
    return sites, rejects + blocked(ledger, known)


def build(ledger: Ledger, consumer: Source, ids: np.ndarray) -> Site | Reject | None:
    """`ids`: the consumer's columns that no attention has; one linear may serve both."""
    graph = ledger.flow.graph
    block = ledger.block(ids[None, :])
    hidden = coupling(ledger, "hidden", block, {"in": "in", "with": "in", "out": "out"}, 0)
    above = [s.op for s in ledger.sources_of(ledger.root[ids]) if s.role == "in" and s.op.kind is Kind.LINEAR]
    ops = linear_ops(hidden.members) or [*dict.fromkeys(above), consumer.op]
    makers = [op for op in ops if op is not consumer.op]
    first = (makers or ops)[0]
    name = site_name([op.path for op in ops], "mlp")
    reason = hidden.reason
    if not reason and any(len(m.value) > 1 and np.isin(ledger.root[m.value], block.classes).any() for m in ledger.flow.mixes):
        reason = "its channels are values that a product weighs head by head"
    hidden = read_by_one(graph, hidden)
    reason = reason or hidden.reason
    if reason:
        return Reject(name or str(consumer.op), reason)
    width = hidden.groups * hidden.width
    inputs = inputs_of(graph, hidden) if first in ops else None
    macs, params = width * hidden.channel_macs, width * hidden.channel_params
    return Site(name, "ffn", (hidden,), macs, params, hidden=width, inputs=inputs)


def inputs_of(graph: Reader, hidden: Coupling) -> Coupling | None:
    """The channels of the residual stream that the first linears read: they can be left out, if all read the same ones,
    and make nothing but hidden channels of them.
    """
    rows: dict[Op, int] = {}
    for member in hidden.members:
        op, slot = member.operand
        if member.role == "in" and op.kind is Kind.LINEAR and slot == 1:
            rows[op] = rows.get(op, 0) + member.index.size
    readers = list(rows)
    whole = all(count == graph.shape(op.inputs[1])[op.weight_axes[1]] for op, count in rows.items())
    if not readers or not whole or len({op.inputs[0] for op in readers}) > 1 or any(op.axis != -1 for op in readers):
        return None
    width = graph.shape(readers[0].inputs[1])[readers[0].weight_axes[0]]
    index = np.arange(width)[None]
    members = tuple(Member(graph.constant_name(op, 1), "out", (op.weight_axes[0],), index, (op, 1)) for op in readers)
    costs = [cost_of(graph, m) for m in members]
    macs, params = (sum(c[i] for c in costs) for i in (0, 1))
    return Coupling("inputs", 1, width, members, channel_macs=macs, channel_params=params, read_macs=macs)


def blocked(ledger: Ledger, known: np.ndarray) -> list[Reject]:
    """Linears whose channels meet something that pins them, and pass an activation, before another linear."""
    flow, graph = ledger.flow, ledger.flow.graph
    rejects = []
    for source in flow.sources:
        if source.role != "in" or source.op.kind is not Kind.LINEAR:
            continue
        roots = ledger.root[source.ids]
        if known[roots].any():
            continue
        numbers = ledger.pinned[roots]
        if (numbers < 0).all():
            continue
        pin = flow.pins[int(numbers[numbers >= 0].min())]
        width_in = graph.shape(source.op.inputs[1])[source.op.weight_axes[0]]
        crooked, kind = bool(ledger.nonlinear[roots].any()), None if pin.op is None else pin.op.kind
        if not crooked and kind not in (Kind.OPAQUE, Kind.REDUCE, Kind.CHANNELWISE):
            continue
        if crooked and kind is Kind.OPAQUE and "run time" in pin.op.why:  # type: ignore[union-attr]
            known[roots] = True
            rejects.append(Reject(site_name([source.op.path], "mlp") or str(source.op), pin.reason))
            continue
        end = linear_below(ledger, pin.op, crooked)
        if end is not None and graph.shape(end.inputs[1])[end.weight_axes[1]] == width_in:
            known[roots] = True
            rejects.append(Reject(site_name([source.op.path, end.path], "mlp") or str(source.op), pin.reason))
    return rejects


def linear_below(ledger: Ledger, op: Op | None, crooked: bool, limit: int = 32) -> Op | None:
    """The nearest linear below an op and an activation (`crooked`: that one stands above)."""
    graph = ledger.flow.graph
    todo, seen = [(op, crooked)], set[tuple[Op | None, bool]]()
    while todo and len(seen) < limit:
        here, crooked = step = todo.pop(0)
        if step in seen:
            continue
        seen.add(step)
        if here is None or here.kind in (Kind.PRODUCT, Kind.ATTENTION):
            continue
        crooked = crooked or (here.kind is Kind.ELEMENTWISE and here.effect == "nonlinear")
        for value in here.outputs:
            for user, slot in graph.users(value) if value is not None else ():
                if user.kind is Kind.LINEAR and slot == 0:
                    if crooked:
                        return user
                else:
                    todo.append((user, crooked))
    return None


def classes_of(sites: Sequence[Site]) -> set[int]:
    every = [c.classes.ravel() for s in sites for c in s.couplings if c.classes is not None]
    return set(np.concatenate(every).tolist()) if every else set()
