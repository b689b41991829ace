"""What is left on both sides of a shape node when some elements go: which of its input's stand where in its output."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from toastc.errors import CannotShrink
from toastc.graphs import Graph, Op, Value
from toastc.views import compact

Stays = Callable[[Value], np.ndarray]  # full-shape mask of the elements of a value that stay


def remains(graph: Graph, op: Op, stays: Stays) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Its inputs and its outputs in the shapes they will have; each element of the inputs has a number of its own."""
    numbers: list[np.ndarray | None] = []
    count = 0
    for value in op.inputs:
        shape = () if value is None else graph.shape(value)
        size = int(np.prod(shape))
        numbers.append(None if value is None else np.arange(count, count + size).reshape(shape))
        count += 0 if value is None else size
    made = graph.push(op, numbers)
    before = [left(graph, v, n, stays) for v, n in zip(op.inputs, numbers, strict=True) if v is not None and n is not None]
    return before, [left(graph, v, np.asarray(n), stays) for v, n in zip(op.outputs, made, strict=False) if v is not None]


def left(graph: Graph, value: Value, numbers: np.ndarray, stays: Stays) -> np.ndarray:
    small = compact(np.broadcast_to(stays(value), numbers.shape))
    if small is None:
        raise CannotShrink(
            f"{graph.producer(value)}: what stays of its output {numbers.shape} is no grid; what stands in it is cut unevenly: "
            "give all of it the same ratio, or 0"
        )
    return np.take(numbers, small[1])
