"""Where the channels of a site can be watched: queries and keys at their product, values and hidden channels at the
linear that consumes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from toastc.calibration.taps import Tap
from toastc.graphs import Kind, Op, Value, one_of_one
from toastc.graphs.labels import collapse, varying
from toastc.graphs.protocols import Reader
from toastc.plans.sites import Coupling, Site

from .couplings import Ledger


def all_taps(ledger: Ledger, sites: Iterable[Site]) -> dict[str, Tap]:
    """Of all sites, by their names: `{"blocks.0.attn.qk/q": .., ..}`."""
    return {f"{site.name}.{key}": tap for site in sites for key, tap in taps_of(ledger, site).items()}


def taps_of(ledger: Ledger, site: Site) -> dict[str, Tap]:
    """`{"qk/q": .., "qk/k": .., "vo/out": ..}` or `{"hidden/out": ..}`, as far as all channels have equally many positions."""
    found: dict[str, Tap | None] = {}
    for coupling in site.couplings:
        if not coupling.members or coupling.reason:
            continue
        if coupling.name == "qk":
            product: Op = site.wiring.scores
            axes = key_axes(ledger.flow.graph, product, site.wiring.softmax)
            found["qk/q"] = with_bias(ledger, product, tap(ledger, coupling, product.inputs[0], axes[0]))
            found["qk/k"] = tap(ledger, coupling, product.inputs[1], axes[1])
            for n, other in enumerate(coupling.beside):
                found |= {f"qk/{side}{n}": tap(ledger, coupling, other.inputs[slot]) for slot, side in enumerate("qk")}
        else:
            consumers = dict.fromkeys(m.operand[0] for m in coupling.members if m.role == "out")
            places = [tap(ledger, coupling, op.inputs[0]) for op in consumers]
            known = [t for t in places if t is not None]
            if known and len(known) == len(places):
                found[f"{coupling.name}/out"] = replace(known[0], more=tuple(known[1:]))
    return {name: t for name, t in found.items() if t is not None}


def tap(ledger: Ledger, coupling: Coupling, value: Value | None, tokens: int | None = None) -> Tap | None:
    """Where the channels arrive, or further up: before images were put on one axis with heads, each channel stands once."""
    graph, best = ledger.flow.graph, None
    while value is not None:
        here = tap_at(ledger, coupling, value, tokens)
        free = here is not None and any(graph.varies(value)[axis] for axis in here.axes)
        if here is not None and not free and (best is None or here.copies < best.copies):
            best = here
        op = graph.producer(value)
        if (best is not None and best.copies == 1) or op is None or not one_of_one(op):
            break
        if tokens is not None and (tokens := axis_above(graph, op, tokens)) is None:
            break
        value = op.inputs[0]
    return best


def axis_above(graph: Reader, op: Op, axis: int) -> int | None:
    """The axis of a shape node's input that is this one of its output."""
    shape = graph.shape(op.inputs[0])
    for i, size in enumerate(shape):
        at = np.arange(size).reshape([size if j == i else 1 for j in range(len(shape))])
        made = np.asarray(graph.push(op, [np.broadcast_to(at, shape)])[0])
        moved = collapse(made)
        if made.shape[axis] == size > 1 and moved is not None and varying(moved) == (axis,):
            return i
    return None


def tap_at(ledger: Ledger, coupling: Coupling, value: Value, tokens: int | None) -> Tap | None:
    labels = ledger.flow.labels.get(value)
    if labels is None or coupling.classes is None:
        return None
    axes = varying(labels)
    ids = labels.reshape(-1)
    roots = np.where(ids >= 0, ledger.root[ids], -1)
    order = np.argsort(roots, kind="stable")
    wanted = coupling.classes.ravel()
    first = np.searchsorted(roots[order], wanted)
    copies = np.searchsorted(roots[order], wanted, "right") - first
    if len(np.unique(wanted)) != len(wanted) or copies.min() < 1 or copies.max() != copies.min():
        return None
    index = order[first[:, None] + np.arange(copies[0])]
    return Tap(value, axes, index.reshape(*coupling.classes.shape, copies[0]), tokens)


def with_bias(ledger: Ledger, product: Op, queries: Tap | None) -> Tap | None:
    """A node may add a bias [q|k|v] of its own; keys do not show it, less their mean."""
    spec = product.attention
    if queries is None or spec is None or spec.bias < 0 or product.inputs[spec.bias] is None:
        return queries
    width = ledger.flow.graph.shape(queries.value)[-1]
    return replace(queries, plus=ledger.flow.graph.constant(product.inputs[spec.bias]).ravel()[:width])


def key_axes(graph: Reader, product: Op, softmax: Op) -> tuple[int | None, int | None]:
    """Which axis of Q, or of K, the softmax runs along: the one that has it are the keys."""
    if product.attention is not None:
        return None, product.attention.layouts[1].replace("(hd)", "c").index("n")
    left, right, out = product.spec
    axis = axis_at(graph, softmax.inputs[0], softmax.axes[0], product)
    letter = out[-1 if axis is None else axis]
    if letter in left and letter in right:
        return None, None
    return (left.index(letter), None) if letter in left else (None, right.index(letter))


def axis_at(graph: Reader, value: Value | None, axis: int, end: Op) -> int | None:
    """The axis of what `end` makes that is this one of a value further down."""
    op = None if value is None else graph.producer(value)
    if op is None or op is end:
        return None if op is None else axis
    if op.kind is Kind.SHAPE and one_of_one(op):
        above = axis_above(graph, op, axis)
        return None if above is None else axis_at(graph, op.inputs[0], above, end)
    rank = len(graph.shape(op.outputs[0]))
    if op.kind is Kind.ELEMENTWISE or (op.kind is Kind.LINEAR and axis != op.axis % rank):
        alike = [v for v in op.inputs if v is not None and len(graph.shape(v)) == rank]
        return next((found for v in alike if (found := axis_at(graph, v, axis, end)) is not None), None)
    return None
