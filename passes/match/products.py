"""Products of two tensors: contractions over channels (Q.K'), and mixes that let channels pass (P.V).

A product's `spec` is its equation, one letter an axis: (left, right, output). Labels tell the two kinds apart: if
they vary along a letter that is summed over, it is a contraction.
"""

from __future__ import annotations

import numpy as np

from toastc.graphs import Op
from toastc.graphs.labels import NONE, collapse

from .flow import Flow
from .records import Contraction, Mix


def product(flow: Flow, op: Op) -> None:
    multiply(flow, op)
    made = flow.labels.get(op.outputs[0])
    if len(op.inputs) > 2 and made is not None:
        flow.pin(op, made, f"{op} adds a tensor to it")


def multiply(flow: Flow, op: Op) -> None:
    left, right, out = op.spec
    a, b = flow.of(op, 0), flow.of(op, 1)
    if a is None and b is None:
        return
    summed = [x for x in left if x in right and x not in out]
    carried = [x for x in summed if size(a, left, x) > 1 or size(b, right, x) > 1]
    if carried:
        return contract(flow, op, a, b, carried)
    bears = [bears_channels(flow, t, own, other, out) for t, own, other in ((a, left, right), (b, right, left))]
    if all(bears):
        for labels in (a, b):
            flow.pin(op, labels, f"both operands of {op} carry channels outwards")  # type: ignore[arg-type]
        return None
    value, spec, slot = (b, right, 0) if bears[1] or (not bears[0] and b is not None) else (a, left, 1)
    if value is None:
        return None
    other, other_spec = (a, left) if slot == 0 else (b, right)
    out_labels = over(value, spec, out)
    if not any(bears):  # nothing but heads
        if other is not None:
            flow.classes.tie(out_labels, over(other, other_spec, out))
        flow.put(op.outputs[0], out_labels)
        return None
    if any(size(value, spec, x) > 1 for x in spec if x not in out):
        return flow.pin(op, value, f"{op} sums over its heads")
    shared = [x for x in spec if x in out and x in other_spec and size(value, spec, x) > 1]
    groups = shared + [x for x in other_spec if x in out and x not in shared and size(other, other_spec, x) > 1]
    inner = [x for x in spec if x in out and x not in groups and size(value, spec, x) > 1]
    counts = [max(size(value, spec, x), size(other, other_spec, x)) for x in groups]  # values may be shared by several heads
    ids = over(value, spec, "".join(groups + inner))
    ids = np.broadcast_to(ids, [*counts, *ids.shape[len(groups) :]]).reshape(int(np.prod(counts)), -1)
    heads = None
    if other is not None:
        heads = heads_of(other, other_spec, groups, counts)
        if heads is None:
            flow.pin(op, other, f"{op} does not keep its heads apart")
    flow.mixes.append(Mix(op, slot, ids, heads))
    flow.put(op.outputs[0], out_labels)
    return None


def bears_channels(flow: Flow, labels: np.ndarray | None, own: str, other: str, out: str) -> bool:
    """Does an operand carry numbers outwards that the other does not share, and which are no heads?"""
    outwards = [x for x in own if x in out and x not in other]
    return labels is not None and any(size(labels, own, x) > 1 for x in outwards) and not flow.are_heads(labels)


def heads_of(labels: np.ndarray, spec: str, groups: list[str], counts: list[int]) -> np.ndarray | None:
    if any(size(labels, spec, x) > 1 for x in spec if x not in groups):
        return None
    return np.broadcast_to(over(labels, spec, "".join(groups)), counts).reshape(-1)


def contract(flow: Flow, op: Op, a: np.ndarray | None, b: np.ndarray | None, carried: list[str]) -> None:
    left, right, out = op.spec
    if a is None or b is None:
        slot, labels, spec = (0, b, right) if a is None else (1, a, left)
        assert labels is not None
        if flow.graph.is_constant(op.inputs[slot]):
            own = left if slot == 0 else right
            letters = "".join(sorted(set(left) | set(right)))
            wide = over(labels, spec, letters)
            moved = over(wide, letters, own) if set(spec) & set(own) else labels
            flow.meet_constant(op, slot, moved)
            made = flow.sources[-1]
            full = np.full(flow.graph.shape(op.inputs[slot]), NONE, np.int64)
            view = [full.shape[i] if i in made.axes else 1 for i in range(full.ndim)]
            full = np.broadcast_to(made.ids.reshape(view), full.shape)
            a, b = (collapse(full), b) if slot == 0 else (a, collapse(full))
        else:
            return flow.pin(op, labels, f"{op} multiplies it with a tensor no linear makes")
    assert a is not None and b is not None
    groups = [x for x in out if size(a, left, x) > 1 or size(b, right, x) > 1]  # what has no such axis is shared by all
    stray = [x for t, s in ((a, left), (b, right)) for x in s if size(t, s, x) > 1 and x not in groups + carried]
    if stray:
        for labels in (a, b):
            flow.pin(op, labels, f"{op} carries its channels outwards and sums over them at once")
        return None
    order = "".join(groups + carried)
    q, k = np.broadcast_arrays(over(a, left, order), over(b, right, order))
    count = int(np.prod(q.shape[: len(groups)]))
    heads = None
    if count > 1:
        rows = np.concatenate([q.reshape(count, -1), k.reshape(count, -1)], axis=1)
        alike = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)  # a head of several images, on one axis with them
        heads = flow.classes.new(int(alike.max()) + 1)[alike]
        flow.heads.update(heads.tolist())
        for side in (q, k):
            flow.name_heads(side.reshape(count, -1), heads)
        sizes = [q.shape[groups.index(x)] if x in groups else 1 for x in out]
        order_out = [x for x in out if x in groups]
        array = heads.reshape(q.shape[: len(groups)])
        array = np.transpose(array, [groups.index(x) for x in order_out]).reshape(sizes)
        flow.put(op.outputs[0], np.ascontiguousarray(array))
    flow.contractions.append(Contraction(op, q.reshape(count, -1), k.reshape(count, -1), heads))
    return None


def size(labels: np.ndarray | None, spec: str, letter: str) -> int:
    return labels.shape[spec.index(letter)] if labels is not None and letter in spec else 1


def over(labels: np.ndarray, spec: str, letters: str) -> np.ndarray:
    """Labels over `spec` seen over `letters`: axes are moved, missing ones have size 1, dropped ones are flat."""
    index = tuple(slice(None) if x in letters else 0 for x in spec)
    kept = [x for x in spec if x in letters]
    array = labels[index]
    array = np.transpose(array, [kept.index(x) for x in letters if x in kept])
    return array.reshape([array.shape[[y for y in letters if y in kept].index(x)] if x in kept else 1 for x in letters])
