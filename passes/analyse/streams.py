"""Where a consumer meets the residual stream: little is alive there, and what arrives goes to all blocks behind."""

from __future__ import annotations

from toastc.graphs import Kind, Op, Value
from toastc.graphs.protocols import Reader


def stream_behind(graph: Reader, op: Op) -> Value | None:
    """The sum of what a linear puts out, scaled and shifted on its way, and something else; None if there is none."""
    while True:
        value = op.outputs[0]
        users = graph.users(value)
        if len(users) != 1 or value in graph.outputs:
            return None
        op = users[0][0]
        if len(op.outputs) != 1 or not (op.kind is Kind.SHAPE or (op.kind is Kind.ELEMENTWISE and op.effect != "nonlinear")):
            return None
        if sum(v is not None and not graph.is_constant(v) for v in op.inputs) > 1:
            return op.outputs[0]
