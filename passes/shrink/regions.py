"""Shape plumbing, removed and written anew.

Below a cut linear stands a region of shape nodes that takes its output apart into operands (the *exits*); above a
consumer stands one that puts the heads together again. Both are views, so both are re-emitted in one canonical
form: split the last axis, reshape, transpose, reshape. Before and after, for a fused qkv:

    [B, N, 3*H*d] -> reshape, transpose, slice, squeeze ... -> q, k, v  [B, H, N, d]
    [B, N, H*dk + H*dk + H*dv] -> split -> reshape [0, 0, H, dk] -> transpose -> q, k, v
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from toastc.graphs import Op, Value, lone_shape, one_of_one
from toastc.graphs.protocols import Editor, Reader
from toastc.graphs.rearrange import Atom, View, compact, view_of
from toastc.graphs.shape_edits import line

from .emit import emit_view

Kept = Callable[[Value], np.ndarray]  # full-shape mask of the elements of a value that stay
Fits = Callable[[np.ndarray], bool]


@dataclass(frozen=True, eq=False)
class Exit:
    """A value where the shape region ends: `order` are its channels (of the root's last axis) that stay."""

    value: Value
    view: View
    order: np.ndarray
    sizes: dict[Atom, int]
    grid: list[Atom]


def numbered(shape: Sequence[int]) -> np.ndarray:
    return np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)


def find_exits(graph: Reader, value: Value, ids: np.ndarray, root_shape: tuple[int, ...]) -> list[tuple[Value, View]] | None:
    """The furthest values below `value` that together take its channels apart; `value` itself if there are none."""
    users = graph.users(value)
    if users and all(lone_shape(op) for op, _ in users) and value not in graph.outputs:
        parts: list[tuple[Value, View]] = []
        whole = True
        for op, _ in users:
            for out, array in zip(op.outputs, graph.push(op, [ids]), strict=True):
                if out is None:
                    continue
                below = find_exits(graph, out, np.asarray(array), root_shape)
                whole = whole and below is not None
                parts += below or []
        if whole and apart([view for _, view in parts], root_shape):
            return parts
    here = view_of(ids, root_shape)
    return [(value, here)] if here is not None else None


def apart(views: Sequence[View], root_shape: tuple[int, ...]) -> bool:
    """Does every part hold all rows, and do any two hold the same channels or none in common?"""
    lead = int(np.prod(root_shape[:-1]))
    seen: set[frozenset[int]] = set()
    for view in views:
        channels = frozenset(channels_of(view).ravel().tolist())
        rows = np.prod([a.size for a in view.atoms if a.axis < len(root_shape) - 1], dtype=np.int64)
        if rows != lead or any(channels & others for others in seen - {channels}):
            return False
        seen.add(channels)
    return bool(views)


def channel_atoms(view: View) -> list[Atom]:
    """Atoms of the source's last axis, in the order in which the target runs through them."""
    return [a for axis in view.target for a in axis if a.axis == len(view.source_shape) - 1]


def channels_of(view: View) -> np.ndarray:
    """Positions on the source's last axis, as a grid over the channel atoms."""
    grid = np.array(view.offset % view.source_shape[-1])
    for atom in channel_atoms(view):
        grid = grid[..., None] + np.arange(atom.size) * atom.stride
    return grid


def plan_exits(graph: Reader, root: Value, kept: np.ndarray) -> list[Exit] | None:
    """`kept` [channels]: which positions of the root's last axis stay. None if the region is no set of views."""
    shape = graph.shape(root)
    if not any(lone_shape(op) for op, _ in graph.users(root)):
        return None
    found = find_exits(graph, root, numbered(shape), shape)
    if found is None or (len(found) == 1 and found[0][0] is root):
        return None
    exits = []
    for value, view in found:
        channels = channels_of(view)
        small = compact(kept[channels])
        if small is None:
            return None
        atoms = channel_atoms(view)
        order, sizes = channels.ravel()[small[1].ravel()], dict(zip(atoms, small[0], strict=True))
        if not as_expected(view, order, sizes, kept):
            return None
        exits.append(Exit(value, view, order, sizes, atoms))
    every = np.concatenate(pieces_of(exits))
    if len(np.unique(every)) != len(every):
        return None  # two exits run through the same channels in two ways
    return sorted(exits, key=lambda e: int(channels_of(e.view).min()))


def as_expected(view: View, order: np.ndarray, sizes: dict[Atom, int], kept: np.ndarray) -> bool:
    """Does what is left stand in the new exit as it would in the old one, had it lost what goes? Every row is laid out like
    the first one, so one row tells.
    """
    last = len(view.source_shape) - 1
    row = view.first_of(range(last))
    made = row.arranged(order, [a for a in row.atoms if a.axis < last] + channel_atoms(row), sizes)
    small = compact(kept[row.ids % len(kept)])
    return small is not None and np.array_equal(np.take(row.ids, small[1]), made)


def pieces_of(exits: Sequence[Exit]) -> list[np.ndarray]:
    """What the root is split into: two exits may be of one piece."""
    return list({tuple(e.order): e.order for e in exits}.values())


def emit_exits(graph: Editor, root: Value, exits: Sequence[Exit]) -> None:
    """Write the region below `root` anew, and hand its new exits to the users of the old ones."""
    like, orders = first_user(graph, root), pieces_of(exits)
    pieces = graph.builder(like).split(root, [len(order) for order in orders]) if len(orders) > 1 else [root]
    by_order = {tuple(order): piece for order, piece in zip(orders, pieces, strict=True)}
    for leaving in exits:
        piece = by_order[tuple(leaving.order)]
        last = len(leaving.view.source_shape) - 1
        source = [a for a in leaving.view.atoms if a.axis < last] + leaving.grid
        new = emit_view(graph, piece, leaving.view, source, leaving.sizes, graph.varies(root), leaving.value, like)
        graph.replace(leaving.value, new)


def first_user(graph: Reader, value: Value) -> Op:
    order = {op: i for i, op in enumerate(graph.ops)}
    return min((op for op, _ in graph.users(value)), key=order.__getitem__)


def chain_above(graph: Reader, value: Value) -> tuple[Value, list[Op]]:
    """Up through shape nodes with one input and one user: (where they start, the nodes from the bottom up)."""
    chain: list[Op] = []
    while (op := graph.producer(value)) is not None and one_of_one(op):
        if len(graph.users(value)) != 1:
            break
        chain.append(op)
        value = op.inputs[0]
    return value, chain


def rebuild_above(graph: Editor, consumer: Op, slot: int, kept: Kept, fits: Fits) -> tuple[list[Op], np.ndarray | None]:
    """Write the region above a consumer anew; returns the nodes it replaces, none if it is no view, and in which order the
    consumer's channels arrive; that must be one that `fits`.
    """
    start, chain = chain_above(graph, consumer.inputs[slot])
    if not chain:
        return [], None
    shape = graph.shape(start)
    ids = numbered(shape)
    for op in reversed(chain):
        ids = np.asarray(graph.push(op, [ids])[0])
    view = view_of(ids, shape)
    if view is None or int(np.prod([a.size for a in view.atoms])) != int(np.prod(shape)):
        return [], None
    atoms = view.atoms
    small = compact(kept(start).reshape([a.size for a in atoms]))
    if small is None:
        return [], None
    sizes = dict(zip(atoms, small[0], strict=True))
    column = {number: i for i, number in enumerate(line(ids, ids.ndim - 1, 1).tolist())}
    arriving = line(view.arranged(small[1], atoms, sizes), ids.ndim - 1, 1)
    order = np.array([column.get(number, -1) for number in arriving.tolist()])
    if order.min() < 0 or not fits(order):
        return [], None
    new = emit_view(graph, start, view, atoms, sizes, graph.varies(start), consumer.inputs[slot], chain[0])
    graph.redirect(consumer, slot, new)
    return chain, order
