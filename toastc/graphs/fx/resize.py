"""New sizes and positions for fx shape nodes that stay.

`before` and `after` are what is left of the node's inputs and outputs; the numbers in them tell which element of the output
is which of the input. A node that turns one into the other as it is (a transpose, `chunk(2)`, `x[..., ::2]`) is left alone, and
`resize` carries out the rule of its operator on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import fx

from ...system.errors import CannotShrink
from ...system.vocabulary import Operand
from .. import Dim, Op
from ..protocols import Reader
from ..shape_edits import check_order, comes_out_right, picked, step_of
from .classify import meta
from .names import hint
from .nodes import Nodes

aten = torch.ops.aten
Left = Sequence[np.ndarray]


def reshape(graph: Reader, nodes: Nodes, op: Op, before: Left, after: Left) -> None:
    check_order(op, before, after)
    become(op.node, aten.reshape.default, (op.node.args[0], sizes(graph, nodes, op, after[0].shape)))


def expand(graph: Reader, nodes: Nodes, op: Op, before: Left, after: Left) -> None:
    become(op.node, aten.expand.default, (op.node.args[0], sizes(graph, nodes, op, after[0].shape)))


def split(graph: Reader, nodes: Nodes, op: Op, before: Left, after: Left) -> None:
    node: fx.Node = op.node
    given: Operand = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    axis = given % before[0].ndim
    become(node, aten.split_with_sizes.default, (node.args[0], split_sizes(op, axis, before[0], after), axis))


def become_pick(graph: Reader, nodes: Nodes, op: Op, before: Left, after: Left) -> None:
    given, (axis, at) = op.node.args[0], picked(op, graph.varies(op.inputs[0]), before, after)
    step = step_of(at)
    if at.ndim == 0:
        become(op.node, aten.select.int, (given, axis, int(at)))
    elif step is not None and step > 0:
        become(op.node, aten.slice.Tensor, (given, axis, int(at[0]), int(at[-1]) + 1, step))
    else:
        index = nodes.positions(at, f"{op.name}_positions", op.node, meta(op.inputs[0]).device)
        become(op.node, aten.index_select.default, (given, axis, index))


def resize(rule: Callable[..., None] | None, graph: Reader, nodes: Nodes, op: Op, before: Left, after: Left) -> None:
    if graph.sizes_from(op) or not comes_out_right(graph.push, op, before, after):
        (rule or become_pick)(graph, nodes, op, before, after)


def split_sizes(op: Op, axis: int, before: np.ndarray, after: Left) -> list[int]:
    """What is left goes to the first part that nobody reads."""
    made, rest = [], before.shape[axis] - sum(a.shape[axis] for a in after)
    parts = iter(after)
    for value in op.outputs:
        made.append(rest if value is None else next(parts).shape[axis])
        rest = 0 if value is None else rest
    return made


def become(node: fx.Node, target: Operand, args: tuple[Operand, ...]) -> None:
    node.op, node.target, node.args, node.kwargs = "call_function", target, args, {}


def sizes(graph: Reader, nodes: Nodes, op: Op, shape: tuple[int, ...]) -> list[Operand]:
    """Numbers where the size is fixed, -1 for one that is not; where there are more, as the node has them or from an input."""
    node, dims = op.node, meta(op.node).shape
    free = [isinstance(d, torch.SymInt) for d in dims]
    changed = [i for i, size in enumerate(shape) if free[i] and size != hint(dims[i])]
    told: Operand = node.args[1] if len(node.args) > 1 and isinstance(node.args[1], tuple | list) else node.args[1:]
    made: list[Operand] = []
    for i, size in enumerate(shape):
        as_told = len(told) == len(shape) and told[i] != -1
        found = None if i in changed else told[i] if as_told else graph.size_at_runtime(node, i)
        if not free[i]:
            made.append(size)
        elif sum(free) == 1 or changed == [i] or found is None:
            made.append(-1)
        else:
            made.append(nodes.call(aten.sym_size.int, (found.of, found.axis), op) if isinstance(found, Dim) else found)
    if made.count(-1) > 1:
        raise CannotShrink(f"{op}: more than one size of its output is only known at run time")
    return made
