"""Labels through the graph: which weight rows arrive on which axis of which product.

Every linear's output channels are numbered, and one topological walk carries the numbers on. Shape nodes are
executed on them; elementwise nodes tie the numbers that meet; a product over an axis that carries numbers is a
*contraction* (Q.K'), any other product a *mix* (P.V) that lets the numbers of its value operand pass; a linear
that contracts numbers is their *consumer*. Whatever else touches numbers pins them, with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from toastc.graphs import Kind, Op, Role
from toastc.graphs.labels import NONE, collapse, varying
from toastc.graphs.protocols import Reader

from .absence import note_absence, statistic, unexpanded
from .flow import Flow
from .fused import attention
from .products import product
from .records import Source

PASSED_THROUGH = (Kind.ELEMENTWISE, Kind.REDUCE, Kind.SHAPE)


def walk(graph: Reader) -> Flow:
    """The numbers of all channels, as far as they get."""
    flow = Flow(graph)
    for op in graph.ops:
        RULES[op.kind](flow, op)
        note_absence(flow, op)
    for value in graph.outputs:
        if value in flow.labels:
            flow.pin(None, flow.labels[value], "is an output of the model")
    for source in flow.sources:
        if source.op.inputs[source.slot] in graph.outputs:
            flow.pin(None, source.ids, "is an output of the model")
    return flow


def linear(flow: Flow, op: Op) -> None:
    given, rank = flow.of(op, 0), len(flow.graph.shape(op.outputs[0]))
    if given is not None:
        if varying(given) == (op.axis % rank,):
            flow.sources.append(Source(op, 1, (op.weight_axes[0],), given.reshape(-1), "out"))
        else:
            flow.pin(op, given, f"{op} is applied along another axis of it")
        for made in flow.sums:
            if np.isin(flow.classes.find(made.heads), flow.classes.find(given[given >= 0])).any():
                flow.pin(made.op, made.rows, f"{made.op} mixes its channels")
    width = flow.graph.shape(op.inputs[1])[op.weight_axes[1]]
    known = used_before(flow, op, given)
    ids = flow.classes.new(width) if known is None else known
    flow.sources.append(Source(op, 1, (op.weight_axes[1],), ids, "in"))
    if given is not None and flow.are_heads(given):  # heads that talk to each other: what it makes are heads as well
        flow.heads.update(ids.tolist())
        flow.talking.add(op)
    labels = ids.reshape([width if axis == op.axis % rank else 1 for axis in range(rank)])
    first = flow.weights[flow.graph.identity(op.inputs[1])][0][0]
    if known is None and first is not op:
        flow.pin(op, ids, f"its weight is shared by {first} and {op}")
    if len(op.inputs) > 2 and op.inputs[2] is not None:
        if flow.graph.is_constant(op.inputs[2]) and op.axis == -1:
            flow.meet_constant(op, 2, labels)
        elif not flow.meet_channels(op, 2, labels):
            flow.pin(op, labels, f"{op} adds a bias that is not a constant")
    flow.put(op.outputs[0], labels)


def used_before(flow: Flow, op: Op, given: np.ndarray | None) -> np.ndarray | None:
    """The numbers of a linear's channels, if another has its weight: what goes there goes here, in what both read as well."""
    twins = flow.weights.setdefault(flow.graph.identity(op.inputs[1]), [])
    twins.append((op, given))
    first, read = twins[0]
    if first is op:
        return None
    reason = f"its weight is shared by {first} and {op}"
    ids = next(s.ids for s in flow.sources if s.op is first and s.role == "in")
    alike = (first.weight_axes, first.axis) == (op.weight_axes, op.axis)
    if alike and read is not None and given is not None:
        flow.classes.tie(read.reshape(-1), given.reshape(-1))
    else:
        for labels in (read, given):
            if labels is not None:
                flow.pin(op, labels, reason)
    if not alike:
        flow.pin(first, ids, reason)
    return ids if alike else None


def shape(flow: Flow, op: Op) -> None:
    arrays = [flow.labels.get(v) if v is not None else None for v in op.inputs]
    if all(a is None for a in arrays):
        return
    full: list[np.ndarray | None] = []
    for value, array in zip(op.inputs, arrays, strict=True):
        if value is None:
            full.append(None)
            continue
        shape = flow.graph.shape(value)
        filler = np.array(NONE, np.int64) if array is None else array
        full.append(np.broadcast_to(filler, shape))
    for value, array in zip(op.outputs, flow.graph.push(op, full), strict=True):
        if value is not None and array is not None:
            flow.put(value, collapse(np.asarray(array)))


def elementwise(flow: Flow, op: Op) -> None:
    given = [(slot, labels) for slot in range(len(op.inputs)) if (labels := flow.of(op, slot)) is not None]
    if not given or op.outputs[0] is None:
        return
    channels = [(slot, labels) for slot, labels in given if not flow.are_sums(labels)]
    sums = [slot for slot, _ in given if all(slot != s for s, _ in channels)] if channels else []  # they go where a head goes
    given = channels or given
    rank = len(flow.graph.shape(op.outputs[0]))
    merged = given[0][1].reshape([1] * (rank - given[0][1].ndim) + list(given[0][1].shape))
    for _, labels in given[1:]:
        labels = labels.reshape([1] * (rank - labels.ndim) + list(labels.shape))
        flow.classes.tie(merged, labels)
        a, b = np.broadcast_arrays(merged, labels)
        if ((a < 0) != (b < 0)).any():
            flow.pin(op, np.concatenate([a[b < 0], b[a < 0]]), f"{op} combines it with a tensor no linear makes")
        merged = np.where(a >= 0, a, b)
    if may_divide_by_nothing(flow, op, [slot for slot, _ in given]):
        flow.pin(op, merged, f"{op} divides by it")
    for slot, value in enumerate(op.inputs):
        if value is None or any(slot == s for s, _ in given):
            continue
        if flow.graph.is_constant(value):
            with_constant(flow, op, slot, merged)
        else:
            with_tensor(flow, op, slot, merged, slot in sums)
    if op.effect == "nonlinear" or (len(given) > 1 and op.effect == "linear"):
        flow.nonlinear.append((op, np.unique(merged)))
    flow.put(op.outputs[0], merged)


def may_divide_by_nothing(flow: Flow, op: Op, slots: list[int]) -> bool:
    """A channel that is gone is 0 where the result is padded back; something may be added to it before."""
    slot = 1 if Role.DIVIDE in op.role else 0 if Role.INVERT in op.role else -1
    value = op.inputs[slot] if slot in slots else None
    while value is not None and (above := flow.graph.producer(value)) is not None and above.kind in PASSED_THROUGH:
        if Role.POSITIVE in above.role or (Role.BOUND in above.role and with_number(flow, above)):
            return False
        value = next((v for v in above.inputs if v in flow.labels), None)
    return value is not None


def with_number(flow: Flow, op: Op) -> bool:
    numbers = [v for v in op.inputs if v is not None and flow.graph.is_constant(v) and math.prod(flow.graph.shape(v)) == 1]
    return bool(numbers) or sum(v is not None for v in op.inputs) == 1


def with_constant(flow: Flow, op: Op, slot: int, labels: np.ndarray) -> None:
    per_channel = flow.meet_constant(op, slot, labels)
    if per_channel and Role.DIVIDE in op.role and slot == 1:
        flow.pin(op, labels, f"{op} divides each channel by its own number")
    elif per_channel and op.effect == "linear":
        flow.scaled.append(np.unique(labels))
    elif not per_channel and Role.DIVIDE in op.role and slot == 0:
        flow.nonlinear.append((op, np.unique(labels)))


def with_tensor(flow: Flow, op: Op, slot: int, labels: np.ndarray, summed: bool) -> None:
    """`summed`: it has one number for all channels of a head."""
    value = op.inputs[slot]
    one, whole = (flow.graph.shape(v) for v in (unexpanded(flow.graph, value), value))
    shape = (1,) * (labels.ndim - len(one)) + tuple(one)
    along = [i for i in varying(labels) if shape[i] > 1]
    if along and not (summed and along == [i for i in varying(flow.labels[value]) if shape[i] > 1]):
        flow.pin(op, labels, f"{op} combines it with a tensor no linear makes")
    elif one != whole:
        flow.expanded.append((op, slot))


def channelwise(flow: Flow, op: Op) -> None:
    for slot in range(1, len(op.inputs)):
        other = flow.of(op, slot)
        if other is not None:
            flow.pin(op, other, f"{op} mixes its channels")
    labels = flow.of(op, 0)
    if labels is None:
        return
    if not {0, op.axis % labels.ndim}.issuperset(varying(labels)):  # images do not see each other
        flow.pin(op, labels, f"{op} mixes what stands on another axis of it")
        return
    for slot in range(1, len(op.inputs)):
        flow.meet_channels(op, slot, labels)
    flow.scaled.append(np.unique(labels))
    if op.effect == "nonlinear":
        flow.nonlinear.append((op, np.unique(labels)))
    flow.put(op.outputs[0], labels)


def reduce(flow: Flow, op: Op) -> None:
    for slot in range(len(op.inputs)):
        labels = flow.of(op, slot)
        if labels is None:
            continue
        axes = tuple(a % labels.ndim for a in op.axes or range(labels.ndim))
        made = op.outputs[0]
        rank = -1 if made is None else len(flow.graph.shape(made))
        tied = any(labels.shape[a] > 1 for a in axes)
        if not slot and tied and made is not None and statistic(flow, op, labels, axes):
            continue
        if slot or tied or rank not in (labels.ndim, labels.ndim - len(axes)):
            flow.pin(op, labels, f"{op} mixes its channels")
            continue
        if Role.SUM not in op.role:
            flow.scaled.append(np.unique(labels))  # each channel by itself, but no sum of them
        flow.put(made, labels if rank == labels.ndim else labels.squeeze(axes))


def opaque(flow: Flow, op: Op) -> None:
    for slot in range(len(op.inputs)):
        labels = flow.of(op, slot)
        if labels is not None:
            flow.pin(op, labels, f"{op} {op.why}")


RULES: dict[Kind, Callable[[Flow, Op], None]] = {
    Kind.LINEAR: linear,
    Kind.PRODUCT: product,
    Kind.ATTENTION: attention,
    Kind.SHAPE: shape,
    Kind.ELEMENTWISE: elementwise,
    Kind.CHANNELWISE: channelwise,
    Kind.REDUCE: reduce,
    Kind.OPAQUE: opaque,
}
