"""New sizes and positions for shape nodes that stay.

`before` and `after` are what is left of the node's inputs and outputs; the numbers in them tell which element of the output
is which of the input. `resize` carries out the rule of the node's operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from ...system.errors import CannotShrink
from .. import Op
from ..protocols import Reader
from ..shape_edits import check_order, comes_out_right, picked, step_of
from .nodes import Nodes

Left = Sequence[np.ndarray]


def reshape(graph: Reader, nodes: Nodes, op: Op, before: Left, after: Left) -> None:
    if op.type == "Reshape":
        check_order(op, before, after)
    op.node.attributes.pop("allowzero", None)
    give(nodes, op, {1: target_sizes(graph, nodes, op, after[0].shape)})


def split(graph: Reader, nodes: Nodes, op: Op, before: Left, after: Left) -> None:
    axis = int(op.node.attributes["axis"].as_int()) if "axis" in op.node.attributes else 0
    op.node.attributes.pop("num_outputs", None)
    give(nodes, op, {1: [a.shape[axis] for a in after]})


def become_gather_or_slice(graph: Reader, nodes: Nodes, op: Op, before: Left, after: Left) -> None:
    """A slice with other ends, where its positions are evenly spaced."""
    if comes_out_right(graph.push, op, before, after):
        return
    axis, at = picked(op, graph.varies(op.inputs[0]), before, after)
    step = step_of(at)
    if step is None:
        become_gather(nodes, op, axis, at)
        return
    past = int(at[-1]) + (1 if step > 0 else -1)
    give(nodes, op, {1: [int(at[0])], 2: [past if past >= 0 else -before[0].shape[axis] - 1], 3: [axis], 4: [step]})


def as_it_is(graph: Reader, nodes: Nodes, op: Op, before: Left, after: Left) -> None:
    """It comes out right by itself, or becomes a node that picks."""
    if not comes_out_right(graph.push, op, before, after):
        become_gather(nodes, op, *picked(op, graph.varies(op.inputs[0]), before, after))


def resize(rule: Callable[..., None] | None, graph: Reader, nodes: Nodes, op: Op, before: Left, after: Left) -> None:
    (rule or as_it_is)(graph, nodes, op, before, after)


def give(nodes: Nodes, op: Op, numbers: dict[int, list[int] | ir.Value]) -> None:
    """The node new numbers for some of its inputs."""
    for slot, given in numbers.items():
        value = nodes.positions(given, f"{op.name or op.type}_sizes") if isinstance(given, list) else given
        if len(op.node.inputs) <= slot:
            op.node.resize_inputs(slot + 1)
        op.node.replace_input_with(slot, value)


def become_gather(nodes: Nodes, op: Op, axis: int, at: np.ndarray) -> None:
    op.node.op_type, op.node.domain = "Gather", ""
    op.node.attributes.clear()
    op.node.attributes["axis"] = ir.AttrInt64("axis", axis)
    op.node.resize_inputs(2)
    op.node.replace_input_with(1, nodes.positions(at, f"{op.name or op.type}_channels"))


def target_sizes(graph: Reader, nodes: Nodes, op: Op, shape: tuple[int, ...]) -> list[int] | ir.Value:
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
    kept = nodes.insert("Mul", [op.node.inputs[1], nodes.positions(told, name)], op, of=ir.DataType.INT64)
    return nodes.insert("Add", [*kept, nodes.positions(numbers, name)], op, of=ir.DataType.INT64)[0]
