"""FFNs written as 1x1 convolutions. They are not cut, and are named among what was not, so that nobody has to wonder."""

from __future__ import annotations

from toastc.graphs import Kind, Op
from toastc.graphs.macs import is_convolution
from toastc.graphs.protocols import Reader
from toastc.plans.sites import Reject

from .names import site_name

NEAR = 16  # nodes between the two: a norm, an activation, a depthwise convolution, and what these are made of


def convolved_ffns(graph: Reader) -> list[Reject]:
    found = []
    for op in graph.ops:
        narrow, wide = pointwise(graph, op)
        end = closing(graph, op, wide, narrow) if wide > narrow else None
        if end is not None:
            name = site_name([op.path, end.path], "mlp") or str(op)
            found.append(Reject(name, f"{op} and {end} are convolutions; of FFNs only those of linears are cut"))
    return found


def pointwise(graph: Reader, op: Op) -> tuple[int, int]:
    """How many channels a 1x1 convolution reads and makes; nothing of others."""
    weight = op.inputs[1] if is_convolution(op) else None
    if weight is None or not graph.is_constant(weight) or len(graph.shape(weight)) < 3:
        return 0, 0
    out, own, *window = graph.shape(weight)
    return (own, out) if own > 1 and set(window) == {1} else (0, 0)


def closing(graph: Reader, op: Op, wide: int, narrow: int) -> Op | None:
    """The nearest 1x1 convolution below that leads back, behind an activation."""
    todo, seen = [(op, False)], 0
    while todo and seen <= NEAR:
        here, bent = todo.pop(0)
        seen += 1
        for value in here.outputs:
            for user, _ in graph.users(value) if value is not None else ():
                if bent and pointwise(graph, user) == (wide, narrow):
                    return user
                todo.append((user, bent or (user.kind is Kind.ELEMENTWISE and user.effect == "nonlinear")))
    return None
