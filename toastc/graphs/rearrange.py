"""Rearrangements, read off by their effect.

Whatever chain of reshapes, transposes, splits and slices stands between two tensors, pushing the numbers
`0..n-1` through it shows what it does. If every axis of the result steps through the source in a mixed radix,
the chain is *split axes into atoms, permute the atoms, merge them again*, and can be written anew with other sizes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Atom:
    """`size` steps of `stride` in the flat source; `axis` of the source it belongs to."""

    size: int
    stride: int
    axis: int


@dataclass(frozen=True)
class View:
    """`target[i]` lists the atoms that axis i of the result runs through, outer first."""

    source_shape: tuple[int, ...]
    target: tuple[tuple[Atom, ...], ...]
    offset: int

    @property
    def atoms(self) -> list[Atom]:
        """All atoms in the order of the source: outer first."""
        return sorted((a for axis in self.target for a in axis), key=lambda a: (a.axis, -a.stride))

    @property
    def ids(self) -> np.ndarray:
        """What it makes of a source that is numbered 0..n-1."""
        made = np.array(self.offset)
        for axis in self.target:
            line = np.zeros(1, np.int64)
            for atom in axis:
                line = (line[:, None] + np.arange(atom.size) * atom.stride).ravel()
            made = made[..., None] + line
        return made

    def first_of(self, axes: Collection[int]) -> View:
        """What it does to the first of these axes of its source."""
        target = (tuple(Atom(1, a.stride, a.axis) if a.axis in axes else a for a in axis) for axis in self.target)
        return replace(self, target=tuple(target))

    def arranged(self, numbers: np.ndarray, source: Sequence[Atom], sizes: Mapping[Atom, int]) -> np.ndarray:
        """The same done to a source that is left with other `sizes`; its atoms stand in it as in `source`."""
        grid = numbers.reshape([sizes.get(a, a.size) for a in source])
        order = [source.index(a) for axis in self.target for a in axis]
        return grid.transpose(order).reshape([math.prod(sizes.get(a, a.size) for a in axis) for axis in self.target])


def radix(steps: np.ndarray) -> list[tuple[int, int]] | None:
    """`[0, 1, 2, 10, 11, 12]` as [(2, 10), (3, 1)]: sizes and strides, outer first; None if irregular."""
    parts: list[tuple[int, int]] = []
    while len(steps) > 1:
        stride = int(steps[1])
        run = 1
        while run < len(steps) and steps[run] == run * stride:
            run += 1
        while len(steps) % run:
            run -= 1
        if run == 1 or stride == 0:
            return None
        inner = np.arange(run) * stride
        outer = steps[::run]
        if not np.array_equal(steps, (outer[:, None] + inner).ravel()):
            return None
        parts.insert(0, (run, stride))
        steps = outer
    return parts


def view_of(ids: np.ndarray, source_shape: Sequence[int]) -> View | None:
    """The view that takes a source of this shape, numbered 0..n-1, to `ids`; None if there is none."""
    if ids.size == 0:
        return None
    strides = [math.prod(source_shape[i + 1 :]) for i in range(len(source_shape))]
    origin = int(ids[(0,) * ids.ndim])
    target: list[tuple[Atom, ...]] = []
    rebuilt = np.array(origin, ids.dtype)
    for axis in range(ids.ndim):
        line = ids[(0,) * axis + (slice(None),) + (0,) * (ids.ndim - axis - 1)] - origin
        parts = radix(line)
        if parts is None:
            return None
        atoms: list[Atom] = []
        for size, stride in parts:
            within = split_at_axes(size, stride, strides, source_shape)
            if within is None:
                return None
            atoms += within
        target.append(tuple(atoms))
        rebuilt = rebuilt[..., None] + line
    if not np.array_equal(rebuilt, ids):
        return None
    view = View(tuple(source_shape), tuple(pair_units(target, source_shape)), origin)
    return view if len(set(view.atoms)) == len(view.atoms) else None


def split_at_axes(size: int, stride: int, strides: Sequence[int], source_shape: Sequence[int]) -> list[Atom] | None:
    """Steps that run through several source axes, as one atom for each of them, outer first."""
    atoms: list[Atom] = []
    while size > 1:
        owner = next((i for i, s in enumerate(strides) if 0 < s <= stride and source_shape[i] > 1), None)
        if owner is None or stride % strides[owner]:
            return None
        room = strides[owner] * source_shape[owner] // stride
        own = min(size, room)
        if own == 1 or size % own:  # the first step leaves the axis, in the middle of it
            return None
        atoms.insert(0, Atom(own, stride, owner))
        size, stride = size // own, stride * own
    return atoms


def pair_units(target: Sequence[tuple[Atom, ...]], source_shape: Sequence[int]) -> list[tuple[Atom, ...]]:
    """Axes of size 1 are all alike: let those of the target stand for those of the source, in order."""
    units = [i for i, size in enumerate(source_shape) if size == 1]
    return [axis or ((Atom(1, 0, units.pop(0)),) if units else ()) for axis in target]


def compact(kept: np.ndarray) -> tuple[tuple[int, ...], np.ndarray] | None:
    """Remove what is not kept and stay a grid: (new shape, old flat position of each element), or None.

    Whole slices may go along any axis, and along one axis (the last that fits) each line may keep other
    positions, as long as all lines keep equally many.
    """
    flat = np.arange(kept.size).reshape(kept.shape)
    if kept.all():
        return kept.shape, flat
    if not kept.any():
        return None
    for axis in reversed(range(kept.ndim)):
        counts = kept.sum(axis)
        lines = counts > 0
        if len(set(counts[lines].tolist())) != 1:
            continue
        slices = [lines.any(tuple(j for j in range(lines.ndim) if j != i)) for i in range(lines.ndim)]
        grid = np.ix_(*[np.flatnonzero(s) for s in slices])
        if not lines[grid].all() or lines.sum() != lines[grid].size:
            continue
        count = int(counts[lines][0])
        mask, numbers = np.moveaxis(kept, axis, -1)[grid], np.moveaxis(flat, axis, -1)[grid]
        taken = np.moveaxis(numbers[mask].reshape(*mask.shape[:-1], count), -1, axis)
        return taken.shape, taken
    return None
