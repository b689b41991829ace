"""What stands in the place of a channel that is gone, in the dense graph with zeros for its weights.

A linear makes nothing there, and most of what follows leaves it so: such values are `silent`. x - mean(x) does not: there is
-mean then, a number of each token that can be worked out from what stays. Values of which that is so are `told`.
"""

from __future__ import annotations

import numpy as np

from toastc.graphs import Kind, Op, Role, Value
from toastc.graphs.protocols import Reader

from .flow import Flow
from .records import Sum


def note_absence(flow: Flow, op: Op) -> None:
    """Of what an op has just made."""
    made = [v for v in op.outputs if v is not None and v in flow.labels]
    if not made:
        return
    given = [v for v in op.inputs if v is not None and has_channels(flow, v)]
    if is_silent(flow, op, given):
        flow.silent.update(made)
    if op.kind is Kind.ELEMENTWISE and all(v in flow.silent or v in flow.told for v in given):
        flow.told.update(made)
    bends = bool(flow.nonlinear) and flow.nonlinear[-1][0] is op
    carried = given or op.inputs  # of a product of heads and values: the values
    if bends or (op.kind is not Kind.LINEAR and any(v in flow.bent for v in carried)):
        flow.bent.update(made)


def has_channels(flow: Flow, value: Value) -> bool:
    return value in flow.labels and not flow.are_heads(flow.labels[value])


def is_silent(flow: Flow, op: Op, given: list[Value]) -> bool:
    """`given`: which of its operands carry channels."""
    silent, filled = [v in flow.silent for v in given], constants_of(flow, op)
    if op.kind is Kind.LINEAR:
        return True
    if op.kind is Kind.REDUCE:
        keeps = bool(op.role & (Role.SUM | Role.LENGTH | Role.ZERO)) or (op.norm is not None and not op.norm.centred)
        return 1 in filled or (keeps and all(silent))
    if op.kind is not Kind.ELEMENTWISE:
        return bool(given) and all(silent)
    if Role.MULTIPLY in op.role:
        return any(silent) or bool(filled)
    if Role.DIVIDE in op.role and op.effect == "linear":
        return op.inputs[0] in flow.silent
    if op.effect == "affine":  # a number that is no tensor counts as well
        return all(silent) and 1 < len(op.inputs) == len(given) + len(filled)
    others = [v for v in op.inputs if v is not None and v not in given]
    fixed = all(flow.graph.is_constant(v) for v in others)
    return all(silent) and (op.effect == "linear" or (Role.ZERO in op.role and fixed))


def constants_of(flow: Flow, op: Op) -> set[int]:
    """The slots of an op's constants with a number for each channel: zero where the channel is gone."""
    found: set[int] = set()
    for source in reversed(flow.sources):
        if source.op is not op:
            break
        if source.role == "with":
            found.add(source.slot)
    return found


def unexpanded(graph: Reader, value: Value) -> Value:
    """Before it was repeated along axes, as it is between two tensors anyway."""
    while (op := graph.producer(value)) is not None and op.kind is Kind.SHAPE and Role.EXPAND in op.role:
        before, after = graph.shape(op.inputs[0]), graph.shape(value)
        if len(before) != len(after) or any(a not in (1, b) for a, b in zip(before, after, strict=True)):
            break
        value = op.inputs[0]
    return value


def statistic(flow: Flow, op: Op, labels: np.ndarray, axes: tuple[int, ...]) -> bool:
    """A sum or a norm over channels, if it can be put right where some go. What it makes belongs to the heads it was made for."""
    value, made = op.inputs[0], op.outputs[0]
    whole = op.norm is not None and axes == (labels.ndim - 1,)
    told = value in flow.silent or (Role.SUM in op.role and value in flow.told)
    if not told or not (whole or op.role & (Role.SUM | Role.LENGTH)) or (labels < 0).any():
        return False
    flow.statistics.append(op)
    flow.scaled.append(np.unique(labels))
    shape = flow.graph.shape(made)
    if shape == flow.graph.shape(value):
        for slot in range(1, len(op.inputs)):
            flow.meet_constant(op, slot, labels)
        flow.put(made, labels)
        return True
    rest = tuple(i for i in range(labels.ndim) if i not in axes)
    rows = labels.transpose(*rest, *axes).reshape(-1, int(np.prod([labels.shape[i] for i in axes])))
    if len(rows) > 1:
        heads = flow.classes.new(len(rows))
        flow.heads.update(heads.tolist())
        flow.sums.append(Sum(op, heads, rows))
        kept = heads.reshape([1 if i in axes else n for i, n in enumerate(labels.shape)])
        flow.put(made, kept if len(shape) == labels.ndim else kept.squeeze(axes))
    return True
