"""New sizes and positions for shape nodes that stay.

`before` and `after` are what is left of the node's inputs and outputs; the numbers in them tell which element of the output
is which of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...system.errors import CannotShrink
from .. import Op
from ..shape_edits import check_order, comes_out_right, picked, step_of

if TYPE_CHECKING:
    from .edit import OnnxEdits


def resize(graph: OnnxEdits, op: Op, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> None:
    if op.type == "Reshape":
        check_order(op, before, after)
    if op.type in ("Reshape", "Expand"):
        op.node.attributes.pop("allowzero", None)
        give(graph, op, {1: target_sizes(graph, op, after[0].shape)})
    elif op.type == "Split":
        axis = int(op.node.attributes["axis"].as_int()) if "axis" in op.node.attributes else 0
        op.node.attributes.pop("num_outputs", None)
        give(graph, op, {1: [a.shape[axis] for a in after]})
    elif not comes_out_right(graph.push, op, before, after):
        axis, at = picked(op, graph.varies(op.inputs[0]), before, after)
        step = step_of(at)
        if op.type == "Slice" and step is not None:
            past = int(at[-1]) + (1 if step > 0 else -1)
            give(graph, op, {1: [int(at[0])], 2: [past if past >= 0 else -before[0].shape[axis] - 1], 3: [axis], 4: [step]})
        else:
            become_gather(graph, op, axis, at)


def give(graph: OnnxEdits, op: Op, numbers: dict[int, list[int] | ir.Value]) -> None:
    """The node new numbers for some of its inputs."""
    for slot, given in numbers.items():
        value = graph._constant_input(given, f"{op.name or op.type}_sizes") if isinstance(given, list) else given
        if len(op.node.inputs) <= slot:
            op.node.resize_inputs(slot + 1)
        op.node.replace_input_with(slot, value)


def become_gather(graph: OnnxEdits, op: Op, axis: int, at: np.ndarray) -> None:
    op.node.op_type = "Gather"
    op.node.attributes.clear()
    op.node.attributes["axis"] = ir.AttrInt64("axis", axis)
    op.node.resize_inputs(2)
    op.node.replace_input_with(1, graph._constant_input(at, f"{op.name or op.type}_channels"))


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
