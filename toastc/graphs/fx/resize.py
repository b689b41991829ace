"""New sizes and positions for fx shape nodes that stay.

`before` and `after` are what is left of the node's inputs and outputs; the numbers in them tell which element of the output
is which of the input. A node that turns one into the other as it is (a transpose, `chunk(2)`, `x[..., ::2]`) is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from ...system.errors import CannotShrink
from .. import Dim, Op
from ..shape_edits import check_order, comes_out_right, picked, step_of
from .classify import EXPANSIONS, RESHAPES, meta
from .names import hint

if TYPE_CHECKING:
    from .edit import FxEdits

aten = torch.ops.aten


def resize(graph: FxEdits, op: Op, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> None:
    if not graph.sizes_from(op) and comes_out_right(graph.push, op, before, after):
        return
    node: fx.Node = op.node
    given: Any = node.args[0]
    if op.type in RESHAPES:
        check_order(op, before, after)
        become(node, aten.reshape.default, (given, sizes(graph, op, after[0].shape)))
    elif op.type in EXPANSIONS:
        become(node, aten.expand.default, (given, sizes(graph, op, after[0].shape)))
    elif op.type in ("split", "split_with_sizes", "chunk", "tensor_split"):
        given_axis: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        axis = given_axis % before[0].ndim
        become(node, aten.split_with_sizes.default, (given, split_sizes(op, axis, before[0], after), axis))
    else:
        axis, at = picked(op, graph.varies(op.inputs[0]), before, after)
        step = step_of(at)
        if at.ndim == 0:
            become(node, aten.select.int, (given, axis, int(at)))
        elif step is not None and step > 0:
            become(node, aten.slice.Tensor, (given, axis, int(at[0]), int(at[-1]) + 1, step))
        else:
            become(node, aten.index_select.default, (given, axis, graph._numbers(op, at)))


def split_sizes(op: Op, axis: int, before: np.ndarray, after: Sequence[np.ndarray]) -> list[int]:
    """What is left goes to the first part that nobody reads."""
    made, rest = [], before.shape[axis] - sum(a.shape[axis] for a in after)
    parts = iter(after)
    for value in op.outputs:
        made.append(rest if value is None else next(parts).shape[axis])
        rest = 0 if value is None else rest
    return made


def become(node: fx.Node, target: Any, args: tuple[Any, ...]) -> None:
    node.op, node.target, node.args, node.kwargs = "call_function", target, args, {}


def sizes(graph: FxEdits, op: Op, shape: tuple[int, ...]) -> list[Any]:
    """Numbers where the size is fixed, -1 for one that is not; where there are more, as the node has them or from an input."""
    node, dims = op.node, meta(op.node).shape
    free = [isinstance(d, torch.SymInt) for d in dims]
    changed = [i for i, size in enumerate(shape) if free[i] and size != hint(dims[i])]
    told: Any = node.args[1] if len(node.args) > 1 and isinstance(node.args[1], tuple | list) else node.args[1:]
    made: list[Any] = []
    for i, size in enumerate(shape):
        as_told = len(told) == len(shape) and told[i] != -1
        found = None if i in changed else told[i] if as_told else graph.size_at_runtime(node, i)
        if not free[i]:
            made.append(size)
        elif sum(free) == 1 or changed == [i] or found is None:
            made.append(-1)
        else:
            made.append(graph._call(aten.sym_size.int, (found.of, found.axis), op) if isinstance(found, Dim) else found)
    if made.count(-1) > 1:
        raise CannotShrink(f"{op}: more than one size of its output is only known at run time")
    return made
