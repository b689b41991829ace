"""softmax(Q.K')V as one node: a contraction and a mix at once, in whatever layout the node takes its tensors."""

from __future__ import annotations

import numpy as np

from toastc.graphs import Op
from toastc.graphs.labels import varying

from .flow import Flow
from .records import Contraction, Mix, Source


def attention(flow: Flow, op: Op) -> None:
    spec = op.attention
    assert spec is not None
    counts = (spec.heads, spec.kv_heads, spec.kv_heads)
    q, k, v = (to_heads(operand(flow, op, i), spec.layouts[i], counts[i]) for i in range(3))
    if spec.bias >= 0:
        attention_bias(flow, op, (q, k, v))
    repeat = spec.heads // spec.kv_heads
    heads = flow.classes.new(spec.heads)
    per_head = heads.reshape(1, -1, 1, 1)
    for slot in spec.masks:
        if slot < len(op.inputs) and op.inputs[slot] is not None:
            if flow.of(op, slot) is not None:
                flow.pin(op, flow.labels[op.inputs[slot]], f"it is a mask of {op}")
            mask_shape = flow.graph.shape(op.inputs[slot])
            if len(mask_shape) >= 3 and mask_shape[-3] > 1:
                if flow.graph.is_constant(op.inputs[slot]):
                    flow.meet_constant(op, slot, per_head)
                else:
                    flow.pin(op, heads, f"the mask of {op} has one entry for each head")
    if q is not None and k is not None and fits(q) and fits(k):
        rows_q, rows_k = rows(q, spec.heads), np.repeat(rows(k, spec.kv_heads), repeat, axis=0)
        flow.contractions.append(Contraction(op, rows_q, rows_k, heads))
        for own in (rows_q, rows_k):
            flow.name_heads(own, heads)
    else:
        for slot, labels in ((0, q), (1, k)):
            if labels is not None:
                flow.pin(op, labels, f"{op} multiplies it with a tensor no linear makes" if slot < 2 else "")
    if v is None or not fits(v):
        if v is not None:
            flow.pin(op, v, f"{op} takes it along another axis")
        return
    value = np.repeat(rows(v, spec.kv_heads), repeat, axis=0)
    flow.mixes.append(Mix(op, -1, value, heads))
    flow.put(op.outputs[0], from_heads(value.reshape(1, spec.heads, 1, -1), spec.layouts[3]))


def operand(flow: Flow, op: Op, slot: int) -> np.ndarray | None:
    """Labels of q, k or v; a constant query (a learnt token's) is numbered here."""
    value = op.inputs[slot]
    if slot > 1 or value is None or not flow.graph.is_constant(value):
        return flow.of(op, slot)
    assert op.attention is not None
    axes = {"bhnd": (1, 3), "bnhd": (2, 3), "bn(hd)": (2,)}[op.attention.layouts[slot]]
    shape = flow.graph.shape(value)
    ids = flow.classes.new(int(np.prod([shape[a] for a in axes])))
    flow.sources.append(Source(op, slot, axes, ids, "with"))
    return ids.reshape([size if i in axes else 1 for i, size in enumerate(shape)])


def attention_bias(flow: Flow, op: Op, labels: tuple[np.ndarray | None, ...]) -> None:
    """One vector [q|k|v] added inside the node."""
    assert op.attention is not None
    known = [x for x in labels if x is not None]
    if len(known) < len(labels):
        for x in known:
            flow.pin(op, x, f"{op} adds one bias to it and to a tensor no linear makes")
        return
    flat = np.concatenate([rows(x, op.attention.heads).reshape(-1) for x in known])
    flow.meet_constant(op, op.attention.bias, flat)


def fits(labels: np.ndarray) -> bool:
    return set(varying(labels)) <= {1, 3} and bool((labels >= 0).all())


def rows(labels: np.ndarray, heads: int) -> np.ndarray:
    """[1, heads or 1, 1, width] as [heads, width]."""
    return np.broadcast_to(labels[0, :, 0], (heads, labels.shape[3]))


def to_heads(labels: np.ndarray | None, layout: str, heads: int) -> np.ndarray | None:
    """Labels in a node's own layout as [b, heads, n, width]."""
    if labels is None or layout == "bhnd":
        return labels
    if layout == "bnhd":
        return labels.transpose(0, 2, 1, 3)
    b, n, flat = labels.shape
    if flat == 1:
        return labels.reshape(b, 1, n, 1)
    return labels.reshape(b, n, heads, flat // heads).transpose(0, 2, 1, 3)


def from_heads(labels: np.ndarray, layout: str) -> np.ndarray:
    if layout == "bhnd":
        return labels
    swapped = labels.transpose(0, 2, 1, 3)
    return swapped if layout == "bnhd" else np.ascontiguousarray(swapped).reshape(*swapped.shape[:2], -1)
