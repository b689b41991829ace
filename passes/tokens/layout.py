"""Tokens that are no patches: class, distillation and register tokens stand in front of the grid."""

from __future__ import annotations

import math

import numpy as np

from toastc.graphs import Kind, Op, Role, Value
from toastc.graphs.macs import is_convolution
from toastc.graphs.protocols import Reader
from toastc.system.errors import ToastcError


def leading_tokens(graph: Reader, at: Value | None = None) -> int:
    """How many learnt tokens are put in front of the patches, up to a value of the stream; 0 if there are none.

    They are found where the sequence is put together: the first join of a learnt tensor and one that depends on the
    input, along an axis that is neither batch nor channels; and where more of them join that sequence.
    """
    patches: dict[Value, np.ndarray] = {}  # of sequences: which tokens are patches
    found = np.zeros(0, bool)
    for op in graph.ops:
        made = op.outputs[0] if op.outputs else None
        if made is None or len(graph.shape(made)) != 3:
            continue
        if at is not None and graph.position(made) > graph.position(at):
            break
        known = [patches.get(v) for v in op.inputs]
        if op.kind is Kind.SHAPE and len(op.inputs) > 1:
            parts = joined(graph, op, known, not patches)
            if parts is not None:
                found = patches[made] = parts
        elif op.kind is Kind.ELEMENTWISE:
            own = next((p for p in known if p is not None and len(p) == graph.shape(made)[1]), None)
            if own is not None:
                patches[made] = own
        elif op.kind is Kind.SHAPE and known and known[0] is not None:
            given = np.broadcast_to(known[0][:, None].astype(np.int64), graph.shape(op.inputs[0]))
            row = np.asarray(graph.push(op, [given])[0])
            if row.shape == graph.shape(made):
                patches[made] = row[0, :, 0] > 0
    leading = int(found.argmax()) if found.any() else 0
    if not found[leading:].all():
        raise ToastcError("tokens: learnt tokens stand behind the patches, where merges do not look for them")
    return leading


def joined(graph: Reader, op: Op, known: list[np.ndarray | None], first: bool) -> np.ndarray | None:
    """Which tokens of a join are patches: none of those that are learnt, and in a first join all others."""
    sizes = [graph.shape(v) for v in op.inputs if v is not None]
    made = graph.shape(op.outputs[0])
    if len(sizes) < len(op.inputs) or any(len(s) != 3 for s in sizes) or sum(s[1] for s in sizes) != made[1]:
        return None
    learnt = [is_learnt(graph, v) for v in op.inputs]
    if not any(learnt) or all(learnt) or not (first or any(k is not None for k in known)):
        return None
    parts = zip(learnt, known, sizes, strict=True)
    return np.concatenate([np.full(s[1], not own) if k is None else k for own, k, s in parts])


def grid_of(graph: Reader, patches: int) -> tuple[int, int]:
    """Height and width of the grid that the patches come from: the convolution that made them tells."""
    for op in graph.ops:
        made = op.outputs[0] if op.outputs else None
        if is_convolution(op) and made is not None and len(graph.shape(made)) == 4:
            height, width = graph.shape(made)[2:]
            if height * width == patches:
                return height, width
    side = math.isqrt(patches)
    if side * side != patches:
        raise ToastcError(f"tokens: no convolution makes {patches} patches, and they are no square: their grid is unknown")
    return side, side


def is_learnt(graph: Reader, value: Value) -> bool:
    """Does it come from constants alone, but for the size of the batch?"""
    while not graph.is_constant(value):
        op: Op | None = graph.producer(value)
        if op is None or not op.inputs or op.inputs[0] is None or op.kind is Kind.LINEAR:
            return False
        others = [v for v in op.inputs[1:] if v is not None and not graph.is_constant(v)]
        if op.kind not in (Kind.SHAPE, Kind.ELEMENTWISE) and Role.EXPAND not in op.role:
            return False
        if others and Role.EXPAND not in op.role:
            return False
        value = op.inputs[0]
    return True
