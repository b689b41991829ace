"""New sizes for fx shape nodes that stay.

`before` and `after` are the labels on the node's tensors as they will be. A node that turns `before` into
`after` as it is (a transpose, `chunk(2)`, `x[..., ::2]`) is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from ...errors import CannotShrink
from .. import Dim, Op
from ..picks import line, positions, step_of
from .classify import meta
from .names import hint

if TYPE_CHECKING:
    from .edit import FxEdits

aten = torch.ops.aten


def resize(graph: FxEdits, op: Op, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> None:
    if comes_out_right(graph, op, before, after):
        return
    node: fx.Node = op.node
    given: Any = node.args[0]
    if op.type in ("view", "reshape", "_unsafe_view", "unflatten", "flatten", "view_as", "reshape_as"):
        become(node, aten.reshape.default, (given, sizes(graph, op, after[0].shape)))
    elif op.type in ("expand", "expand_as"):
        become(node, aten.expand.default, (given, sizes(graph, op, after[0].shape)))
    elif op.type in ("split", "split_with_sizes", "chunk", "tensor_split"):
        given_axis: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        axis = given_axis % before[0].ndim
        become(node, aten.split_with_sizes.default, (given, split_sizes(op, axis, before[0], after), axis))
    elif len(before) == len(after) == 1 and before[0].ndim == after[0].ndim:
        axis, at = picked(graph, op, before[0], after[0])
        step = step_of(at)
        if step is not None and step > 0:
            become(node, aten.slice.Tensor, (given, axis, at[0], at[-1] + 1, step))
        else:
            become(node, aten.index_select.default, (given, axis, graph._numbers(op, np.array(at))))
    else:
        raise CannotShrink(f"{op}: carries a size of an axis that is cut, and it is not known how to change it")


def split_sizes(op: Op, axis: int, before: np.ndarray, after: Sequence[np.ndarray]) -> list[int]:
    """What is left goes to the first part that nobody reads."""
    made, rest = [], before.shape[axis] - sum(a.shape[axis] for a in after)
    parts = iter(after)
    for value in op.outputs:
        made.append(rest if value is None else next(parts).shape[axis])
        rest = 0 if value is None else rest
    return made


def comes_out_right(graph: FxEdits, op: Op, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> bool:
    try:
        made = graph.push(op, before)
    except (RuntimeError, IndexError, ValueError):
        return False
    kept = [m for m, v in zip(made, op.outputs, strict=False) if v is not None]
    return len(kept) == len(after) and all(np.array_equal(a, b) for a, b in zip(kept, after, strict=True))


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


def picked(graph: FxEdits, op: Op, before: np.ndarray, after: np.ndarray) -> tuple[int, list[int]]:
    """The one axis along which channels are picked, and where they stand."""
    shape = graph.shape(op.inputs[0])
    went = [
        line(graph.push(op, [np.broadcast_to(place, shape)])[0], i) for i, place in enumerate(np.ogrid[tuple(map(slice, shape))])
    ]
    moved = [i for i, taken in enumerate(went) if not np.array_equal(taken, np.arange(shape[i]))]
    if len(moved) != 1:
        raise CannotShrink(f"{op}: picks channels along several axes at once")
    (axis,) = moved
    return axis, positions(line(before, axis).tolist(), line(after, axis).tolist(), went[axis][0] / shape[axis])
