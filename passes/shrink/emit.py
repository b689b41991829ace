"""A view written into the graph: reshape, transpose, reshape, with the sizes that its atoms have now."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toastc.graphs import Dim, Op, Value
from toastc.graphs.protocols import Editor, Reader
from toastc.graphs.rearrange import Atom, View
from toastc.system.errors import CannotShrink


def emit_view(
    graph: Editor, value: Value, view: View, source: Sequence[Atom], sizes: dict[Atom, int], varies: Sequence[bool],
    after: Value, like: Op,
) -> Value:  # fmt: skip
    """Reshape, transpose, reshape: `source` are the atoms as they stand in `value`, `sizes` their new sizes.

    `after` is the value this takes the place of: it tells which sizes are only known at run time.
    """
    builder, size = graph.builder(like), {a: sizes.get(a, a.size) for a in source}
    moving = {a for axis, free in zip(view.target, graph.varies(after), strict=True) if free for a in axis}
    groups = coalesce(source, view.target)
    target = [[g for atom in axis for g in groups if g[0] is atom] for axis in view.target]
    order = [g for axis in target for g in axis]
    whole = {g: whole_axis(g, source) for g in groups}
    unknown = {g: any(varies[a.axis] and a in moving for a in g) for g in groups}
    length = {g: int(np.prod([size[a] for a in g])) for g in groups}

    dims: list[int | Dim] = []
    for i, g in enumerate(groups):
        axis = whole[g]
        same = axis is not None and (axis == i or unknown[g]) and all(size[a] == a.size for a in g)
        dims.append(Dim(axis) if same and axis is not None else -1 if unknown[g] else length[g])
    if sum(d == -1 for d in dims) > 1:
        dims = [read_size(graph, after, view, g) if d == -1 else d for d, g in zip(dims, groups, strict=True)]
    if [whole[g] for g in groups] != list(range(len(view.source_shape))):
        value = builder.reshape(value, dims)
    perm = [groups.index(g) for g in order]
    if perm != list(range(len(perm))):
        value = builder.transpose(value, perm)
    if any(len(axis) != 1 for axis in target):
        merged: list[int | Dim] = []
        merged_sizes = [int(np.prod([length[g] for g in parts])) for parts in target]
        for i, parts in enumerate(target):
            if len(parts) == 1:
                at = order.index(parts[0])
                merged.append(Dim(at) if at == i or unknown[parts[0]] else length[parts[0]])
            else:
                merged.append(-1 if any(unknown[g] for g in parts) else merged_sizes[i])
        value = builder.reshape(value, merged)
    return value


def read_size(graph: Reader, after: Value, view: View, group: tuple[Atom, ...]) -> Dim:
    """Where to read a size that can not be inferred: an input's axis as long as the target's own."""
    axis = next(i for i, atoms in enumerate(view.target) if atoms == group) if group in view.target else None
    found = graph.size_at_runtime(after, axis) if axis is not None else None
    if found is None:
        raise CannotShrink(
            f"{graph.producer(after)}: several of the axes it merges are known at run time only; export with one of them fixed"
        )
    return found


def coalesce(source: Sequence[Atom], target: Sequence[Sequence[Atom]]) -> list[tuple[Atom, ...]]:
    """Atoms that stand side by side before and after travel as one."""
    after = {a: axis[i + 1] for axis in target for i, a in enumerate(axis[:-1])}
    groups: list[tuple[Atom, ...]] = []
    for atom in source:
        if groups and after.get(groups[-1][-1]) is atom:
            groups[-1] = (*groups[-1], atom)
        else:
            groups.append((atom,))
    return groups


def whole_axis(group: tuple[Atom, ...], source: Sequence[Atom]) -> int | None:
    axes = {a.axis for a in group}
    axis = next(iter(axes))
    own = [a for a in source if a.axis == axis]
    return axis if len(axes) == 1 and list(group) == own else None
