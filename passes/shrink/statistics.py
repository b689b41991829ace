"""Sums and norms over channels of which some are gone: what they would be if the channels were there, with zeros for weights.

mean = c mean'(x) + (1 - c) a       c: how many of the channels stay; a: what stands in the place of one that is gone
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from toastc.graphs import Op, Role, Value
from toastc.graphs.protocols import Builder, Editor

from ..match.absence import constants_of, has_channels, unexpanded
from ..match.flow import Flow
from .regions import first_user

Stays = Callable[[Value], np.ndarray]  # full-shape mask of the elements of a value that stay


def put_right(graph: Editor, flow: Flow, stays: Stays) -> None:
    """All of them, first to last. What was repeated for all channels is taken as it was before."""
    for op, slot in flow.expanded:
        if not stays(op.outputs[0]).all():
            graph.redirect(op, slot, unexpanded(graph, op.inputs[slot]))
    for op in flow.statistics:
        mask = stays(op.inputs[0])
        if mask.all() or not graph.users(op.outputs[0]):
            continue
        axes = tuple(op.axes) or tuple(range(mask.ndim))
        every, kept = int(np.prod([mask.shape[a] for a in axes])), int(mask.sum(axis=axes).max())
        if op.norm is not None:
            write_norm(graph, op, kept / every)
        elif Role.SUM in op.role:
            correct(graph, flow, op, kept, every)


def correct(graph: Editor, flow: Flow, op: Op, kept: int, every: int) -> None:
    """A sum or a mean. A length is right as it is: it is only taken of what would be nothing."""
    made, absent = op.outputs[0], None
    builder = graph.builder(first_user(graph, made), made)
    if op.inputs[0] not in flow.silent:
        absent = builder.again(op, [in_place_of(graph, flow, builder, op, 0), *op.inputs[1:]])
    right: Value = made
    if Role.MEAN in op.role:
        right = builder.mul(right, np.array(kept / every))
    if absent is not None:
        share = (every - kept) / (every if Role.MEAN in op.role else 1)
        right = builder.add(right, builder.mul(absent, np.array(share)))
    if right is not made:
        graph.rewire(made, right, builder.drawn)


def in_place_of(graph: Editor, flow: Flow, builder: Builder, op: Op, slot: int) -> Value:
    """What stands in the place of a channel that is gone, in an operand; what others were put right to is taken as it is now."""
    value = op.inputs[slot]
    if value is not None and not has_channels(flow, value):
        now = graph.operand(op, slot)
        return unexpanded(graph, value) if now is value else now
    above = None if value is None or value in flow.silent else graph.producer(value)
    if above is None:
        return builder.constant(np.zeros((1,) * len(graph.shape(value))))
    filled = constants_of(flow, above)
    nothing = builder.constant(np.zeros(1))
    each = [nothing if i in filled else in_place_of(graph, flow, builder, above, i) for i in range(len(above.inputs))]
    return builder.again(above, each)


def write_norm(graph: Editor, op: Op, share: float) -> None:
    """A whole norm, in single nodes; `share` of its channels stays."""
    norm, builder = op.norm, graph.builder(op, op.inputs[0])
    assert norm is not None
    wide = builder.wide()
    x = wide.cast(graph.operand(op, 0)) if wide is not builder else graph.operand(op, 0)
    more: Value | None = None
    if norm.centred:
        mean = wide.mul(wide.mean(x, -1, keep=True), np.array(share))
        x, more = wide.sub(x, mean), wide.mul(wide.mul(mean, mean), np.array(1 - share))
    square = wide.mul(wide.mean(wide.mul(x, x), -1, keep=True), np.array(share))
    square = square if more is None else wide.add(square, more)
    eps = np.array(norm.eps) if isinstance(norm.eps, float) else norm.eps
    made = wide.div(x, wide.sqrt(wide.add(square, eps)))
    made = builder.cast(made) if wide is not builder else made
    for slot, draw in ((1, builder.mul), (2, builder.add)):
        if slot < len(op.inputs) and op.inputs[slot] is not None:
            made = draw(made, graph.operand(op, slot))
    graph.replace(op.outputs[0], made)
