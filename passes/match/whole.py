"""What stays whole, of all that counts: linears and products with a good part of the MACs that are in nothing that can be cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toastc.graphs import Kind, Op
from toastc.graphs.protocols import Reader
from toastc.plans.sites import Reject, Site

from .couplings import Ledger

COUNTS = 0.02  # of all MACs
NO_ACTIVATION = "no activation stands between it and the next linear"
NO_ATTENTION = "no softmax stands between two products with it"


def cut_with(sites: Sequence[Site]) -> set[Op]:
    """The ops whose MACs become fewer."""
    ops = {m.operand[0] for s in sites for c in s.every if c.prunable for m in c.members}
    for site in sites:
        if site.wiring is not None and any(c.prunable for c in site.couplings):
            ops |= {site.wiring.scores, site.wiring.mix, *(op for c in site.couplings for op in c.beside)}
    return ops


def share_of_macs(graph: Reader, sites: Sequence[Site]) -> float:
    """In what can be cut, of all."""
    cut = cut_with(sites)
    return sum(op.macs for op in graph.ops if op in cut) / max(1, graph.totals()[0])


def stays_whole(ledger: Ledger, sites: Sequence[Site]) -> list[tuple[Reject, float]]:
    """Each with the reason, and its share of the MACs."""
    graph, cut = ledger.flow.graph, cut_with(sites)
    total = max(1, graph.totals()[0])
    heavy = [op for op in graph.ops if op.macs > COUNTS * total and op not in cut]
    return [(Reject(op.path or str(op), reason_of(ledger, op)), op.macs / total) for op in heavy]


def reason_of(ledger: Ledger, op: Op) -> str:
    """The first thing that stands in the way of what it makes, or of what it reads."""
    if op.kind is Kind.OPAQUE:
        return f"{op} {op.why}"
    if op.kind is not Kind.LINEAR:
        return next((p.reason for p in ledger.flow.pins if p.op is op), NO_ATTENTION)
    made, read = ledger.flow.labels.get(op.outputs[0]), ledger.flow.of(op, 0)
    ends = [(labels, where) for labels, where in ((made, "makes"), (read, "reads")) if labels is not None]
    said = [f"what it {where}: {said}" for labels, where in ends if (said := told(ledger, labels))]
    if read is None:
        said.append("what it reads: no linear makes it")
    return "; ".join(said) or NO_ACTIVATION


def told(ledger: Ledger, labels: np.ndarray) -> str:
    roots = ledger.root[labels[labels >= 0]]
    if pinned := ledger.pin_reason(roots):
        return pinned
    readers = {s.op for s in ledger.sources_of(roots) if s.role == "out"}
    if len(readers) > 1:
        return f"{len(readers)} others take it, a residual stream"
    return "" if readers else "no linear takes it"
