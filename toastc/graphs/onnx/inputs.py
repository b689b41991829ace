"""What a model takes: which axis is the batch, and random inputs that make sense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from . import facts as facts_of


def sample_inputs(model: ir.Model, sizes: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in facts_of.runtime_inputs(model):
        shape = tuple(d if isinstance(d, int) else sizes[facts_of.symbol_of(value, i)] for i, d in enumerate(value.shape or ()))
        dtype = ir.DataType(int(value.dtype or 1)).numpy()
        array: np.ndarray
        if dtype.kind == "b":
            array = rng.random(shape) < 0.5
        elif dtype.kind in "iu":
            high = table_rows(value)
            array = rng.integers(0, high, shape) if high else visible(rng.random(shape) < 0.8)
        else:
            array = rng.standard_normal(shape)
        feeds[str(value.name)] = np.asarray(array).astype(dtype)
    return feeds


def batch_axis(sizes: Sequence[int | None], varies: Sequence[bool]) -> int:
    """The first; but of [tokens, batch, width] the one that is free."""
    return list(varies).index(True) if len(sizes) == 3 and sizes[0] != 1 and True in varies else 0


def batch_symbol(model: ir.Model) -> str | None:
    """The name of the batch size, if that is free."""
    for value in facts_of.runtime_inputs(model):
        if value.shape:
            free = [not isinstance(dim, int) for dim in value.shape]
            axis = batch_axis([dim if isinstance(dim, int) else None for dim in value.shape], free)
            return facts_of.symbol_of(value, axis) if free[axis] else None
    return None


def visible(mask: np.ndarray) -> np.ndarray:
    """A mask of ones and zeros in which every row has its first entry."""
    mask[..., :1] = True
    return mask


def table_rows(value: ir.Value) -> int:
    """Rows of the smallest embedding table this input indexes, 0 if it indexes none."""
    rows: list[int] = []
    todo, seen = [value], set()
    while todo:
        here = todo.pop()
        for use in here.uses():
            node = use.node
            if node.op_type == "Gather" and use.idx == 1 and node.inputs[0] is not None:
                shape = node.inputs[0].shape
                if shape is not None and len(shape) >= 2 and isinstance(shape[0], int):
                    rows.append(shape[0])
            elif node.op_type in ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Identity") and use.idx == 0 and node not in seen:
                seen.add(node)
                todo.append(node.outputs[0])
    return min(rows, default=0)
