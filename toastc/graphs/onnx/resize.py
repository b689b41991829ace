"""New sizes for shape nodes that stay: which of their size inputs change, and to what.

`before` and `after` are the labels on the node's tensors as they will be; where an axis of the output shrinks,
the numbers on it tell which positions of the input it is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...errors import CannotShrink
from .. import Op
from ..picks import line, positions, step_of

if TYPE_CHECKING:
    from .edit import OnnxEdits


def resized_inputs(
    graph: OnnxEdits, op: Op, before: Sequence[np.ndarray], after: Sequence[np.ndarray]
) -> dict[int, list[int] | ir.Value]:
    """`{slot: numbers}` of the node's inputs to replace."""
    if op.type == "Reshape":
        return {1: target_sizes(graph, op, after[0].shape)}
    if op.type == "Expand":
        return {1: target_sizes(graph, op, after[0].shape)}
    if op.type == "Split":
        axis = int(op.node.attributes["axis"].as_int()) if "axis" in op.node.attributes else 0
        return {1: [a.shape[axis] for a in after]}
    if op.type == "Slice":
        return {**sliced(graph, op, before[0], after[0])}
    if op.type == "Gather":
        return {**gathered(graph, op, before[0], after[0])}
    return {}


def target_sizes(graph: OnnxEdits, op: Op, shape: tuple[int, ...]) -> list[int] | ir.Value:
    """Sizes that vary at run time are copied (`0`) where the input has them on the same axis, else inferred; where that leaves
    more than one open, they are what the graph makes of them.
    """
    varies = graph.varies(op.outputs[0])
    given, made = graph.shape(op.inputs[0]), graph.shape(op.outputs[0])
    numbers = []
    for axis, size in enumerate(shape):
        if not varies[axis]:
            numbers.append(size)
        elif op.type == "Expand":
            numbers.append(1)
        else:
            lead = given[: axis + 1] == made[: axis + 1]
            numbers.append(0 if lead else -1)
    if numbers.count(-1) <= 1:
        return numbers
    told = [n == -1 and shape[i] == made[i] for i, n in enumerate(numbers)]
    numbers = [0 if kept else n for kept, n in zip(told, numbers, strict=True)]
    if numbers.count(-1) > 1:
        raise CannotShrink(f"{op}: more than one size of its output that is cut is only known at run time")
    name = f"{op.name or op.type}_sizes"
    kept = graph._insert("Mul", [op.node.inputs[1], graph._constant_input(told, name)], op, of=ir.DataType.INT64)
    return graph._insert("Add", [*kept, graph._constant_input(numbers, name)], op, of=ir.DataType.INT64)[0]


def sliced(graph: OnnxEdits, op: Op, before: np.ndarray, after: np.ndarray) -> dict[int, list[int]]:
    data = graph.facts.data
    starts, ends = (data[op.node.inputs[i]].tolist() for i in (1, 2))
    inputs = op.node.inputs
    axes = data[inputs[3]].tolist() if len(inputs) > 3 and inputs[3] is not None else list(range(len(starts)))
    steps = data[inputs[4]].tolist() if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    for i, axis in enumerate(axes):
        axis %= before.ndim
        source, taken, whole = line(before, axis).tolist(), line(after, axis).tolist(), graph.shape(op.inputs[0])[axis]
        if len(source) == whole:
            continue
        first = range(*slice(starts[i], ends[i], steps[i]).indices(whole))[0]
        at = positions(source, taken, first / whole)
        step = step_of(at)
        if step is None:
            if len(axes) > 1:
                raise CannotShrink(f"{op}: slices several axes at once")
            become_gather(graph, op, axis, at)
            return {}
        starts[i], ends[i], steps[i] = at[0], at[-1] + 1 if step > 0 else at[-1] - 1, step
        if step < 0 and ends[i] < 0:
            ends[i] = -len(source) - 1
    return {1: starts, 2: ends, 3: axes, 4: steps}


def become_gather(graph: OnnxEdits, op: Op, axis: int, index: list[int]) -> None:
    """Of a slice that takes what is not evenly spaced any more."""
    op.node.op_type = "Gather"
    op.node.attributes["axis"] = ir.AttrInt64("axis", axis)
    op.node.resize_inputs(2)
    op.node.replace_input_with(1, graph._constant_input(index, f"{op.name or op.type}_channels"))


def gathered(graph: OnnxEdits, op: Op, before: np.ndarray, after: np.ndarray) -> dict[int, list[int]]:
    axis = int(op.node.attributes["axis"].as_int()) if "axis" in op.node.attributes else 0
    axis %= before.ndim
    if before.shape[axis] == graph.shape(op.inputs[0])[axis]:
        return {}
    indices = graph.facts.data[op.node.inputs[1]]
    source = line(before, axis).tolist()
    if indices.ndim != 1:
        if indices.ndim == 0 and 0 <= indices < len(source) and source[int(indices)] == after.ravel()[0] >= 0:
            return {}  # what it picks stands where it stood
        raise CannotShrink(f"{op}: picks single channels of an axis that is cut")
    return {1: [source.index(x) for x in line(after, axis).tolist()]}
