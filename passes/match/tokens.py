"""Tokens that are no patches: class, distillation and register tokens stand in front of the grid."""

from __future__ import annotations

import math

from toastc.errors import ToastcError
from toastc.graphs import Graph, Kind, Op, Value

CONVOLUTIONS = ("conv", "conv2d", "convolution")


def leading_tokens(graph: Graph, at: Value | None = None) -> int:
    """How many learnt tokens are put in front of the patches, up to a value of the stream; 0 if there are none.

    They are found where the sequence is put together: the first join of a learnt tensor and one that depends on the
    input, along an axis that is neither batch nor channels.
    """
    found = 0
    for op in graph.ops:
        made = op.outputs[0] if op.outputs else None
        if op.kind is not Kind.SHAPE or len(op.inputs) < 2 or made is None or len(graph.shape(made)) != 3:
            continue
        if at is not None and graph.position(made) > graph.position(at):
            break
        learnt = [v is not None and is_learnt(graph, v) for v in op.inputs]
        sizes = [graph.shape(v) for v in op.inputs if v is not None]
        if (
            all(len(s) == 3 for s in sizes)
            and sum(s[1] for s in sizes) == graph.shape(made)[1]
            and any(learnt)
            and not all(learnt)
        ):
            first = learnt.index(False)
            if any(learnt[first:]):
                raise ToastcError("tokens: learnt tokens stand behind the patches, where merges do not look for them")
            found += sum(s[1] for s in sizes[:first])
        elif found:
            break
    return found


def grid_of(graph: Graph, patches: int) -> tuple[int, int]:
    """Height and width of the grid that the patches come from: the convolution that made them tells."""
    for op in graph.ops:
        made = op.outputs[0] if op.outputs else None
        if op.type.lower() in CONVOLUTIONS and made is not None and len(graph.shape(made)) == 4:
            height, width = graph.shape(made)[2:]
            if height * width == patches:
                return height, width
    side = math.isqrt(patches)
    if side * side != patches:
        raise ToastcError(f"tokens: no convolution makes {patches} patches, and they are no square: their grid is unknown")
    return side, side


def is_learnt(graph: Graph, value: Value) -> bool:
    """Does it come from constants alone, but for the size of the batch?"""
    while not graph.is_constant(value):
        op: Op | None = graph.producer(value)
        if op is None or not op.inputs or op.inputs[0] is None or op.kind is Kind.LINEAR:
            return False
        others = [v for v in op.inputs[1:] if v is not None and not graph.is_constant(v)]
        if op.kind not in (Kind.SHAPE, Kind.ELEMENTWISE) and op.type not in ("Expand", "expand"):
            return False
        if others and op.type not in ("Expand", "expand", "Tile"):
            return False
        value = op.inputs[0]
    return True
