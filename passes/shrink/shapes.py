"""What is left on both sides of a shape node when some elements go: which of its input's stand where in its output."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from toastc.graphs import Op, Value, one_of_one
from toastc.graphs.protocols import Editor, Reader
from toastc.graphs.rearrange import compact
from toastc.graphs.shape_edits import picked
from toastc.system.errors import CannotShrink

Stays = Callable[[Value], np.ndarray]  # full-shape mask of the elements of a value that stay


def what_remains(graph: Reader, op: Op, stays: Stays) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Its inputs and its outputs in the shapes they will have; each element of the inputs has a number of its own."""
    numbers: list[np.ndarray | None] = []
    count = 0
    for value in op.inputs:
        shape = () if value is None else graph.shape(value)
        size = int(np.prod(shape))
        numbers.append(None if value is None else np.arange(count, count + size).reshape(shape))
        count += 0 if value is None else size
    made = graph.push(op, numbers)
    before = [standing(graph, v, n, stays) for v, n in zip(op.inputs, numbers, strict=True) if v is not None and n is not None]
    return before, [standing(graph, v, np.asarray(n), stays) for v, n in zip(op.outputs, made, strict=False) if v is not None]


def standing(graph: Reader, value: Value, numbers: np.ndarray, stays: Stays) -> np.ndarray:
    small = compact(np.broadcast_to(stays(value), numbers.shape))
    if small is None:
        raise CannotShrink(
            f"{graph.producer(value)}: what stays of its output {numbers.shape} is no grid; what stands in it is cut unevenly: "
            "give all of it the same ratio, or 0"
        )
    return np.take(numbers, small[1])


def picked_at_once(graph: Editor, op: Op, stays: Stays, gone: Collection[Op]) -> list[Op]:
    """A row of shape nodes that can not all stay, like the shuffling of channels: what comes out in the end is picked from what
    goes in. Returns the nodes that this takes the place of, `op` among them; none where it is not possible. `gone`: nodes that
    something took the place of before.
    """
    above: list[Op] = []
    first: Op | None = op
    while first is not None and one_of_one(first) and (first is op or len(graph.users(first.outputs[0])) == 1):
        above.insert(0, first)
        first = graph.producer(first.inputs[0])
        if first not in gone and (row := picked_below(graph, above, stays)):
            return row
    return []


def picked_below(graph: Editor, row: list[Op], stays: Stays) -> list[Op]:
    """The same for this row, or a longer one."""
    first, row = row[0], list(row)
    source, shape = first.inputs[0], graph.shape(first.inputs[0])
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    try:
        before = standing(graph, source, numbers, stays)
    except CannotShrink:
        return []
    for op in row:
        numbers = np.asarray(graph.push(op, [numbers])[0])
    while True:
        value = row[-1].outputs[0]
        try:
            axis, at = picked(first, graph.varies(source), [before], [standing(graph, value, numbers, stays)])
        except CannotShrink:
            users = graph.users(value)
            if len(users) != 1 or value in graph.outputs or not one_of_one(users[0][0]):
                return []
            row.append(users[0][0])
            numbers = np.asarray(graph.push(row[-1], [numbers])[0])
            continue
        graph.replace(value, graph.builder(first, source).take(source, at, axis))
        return row
