"""The residual stream: little is alive there, and what arrives goes to all blocks behind."""

from __future__ import annotations

from array_api_compat import array_namespace, is_array_api_obj

from toastc.calibration.taps import widened
from toastc.graphs import Kind, Live, Op, Value
from toastc.graphs.protocols import Reader
from toastc.system.vocabulary import Array


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


def settled(live: Live) -> Live:
    """Copies, made when the run is over: they stand where its memory was, which the tensors that it put out stand behind."""

    def alone(tensor: Array) -> Array:
        return array_namespace(tensor).asarray(tensor, copy=True) if is_array_api_obj(tensor) else tensor

    return {value: alone(tensor) for value, tensor in live.items()}


def flat(tensor: Array, axis: int = -1) -> Array:
    """[tokens, channels], in float32 at least; `axis` holds the channels."""
    xp = array_namespace(tensor)
    return widened(xp.reshape(xp.moveaxis(tensor, axis, -1), (-1, tensor.shape[axis])))


def shaped(rows: Array, tensor: Array, axis: int = -1) -> Array:
    """The inverse: rows as they stand in a tensor like this one."""
    xp, shape = array_namespace(tensor), list(tensor.shape)
    width = shape.pop(axis)
    return xp.moveaxis(xp.reshape(xp.astype(rows, tensor.dtype), (*shape, width)), -1, axis)
