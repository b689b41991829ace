"""Padding back: the shrunken weights, filled up with zeros to their original shapes.

Run in the *original* graph they must give what the shrunken graph gives, because a padded channel contributes
exactly zero: a padded q.k pair adds 0 to the logit, a padded v or hidden channel meets a zero column. Both
graphs are matched, so this trusts nothing the shrinking wrote but the plan. What the plan keeps as it was is
compared with what it was, number by number; folds and bases make new numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toastc.graphs import Op, Value
from toastc.graphs.protocols import Editor, Reader, bias_of
from toastc.plans.plan import Plan, Select
from toastc.plans.sites import Coupling, Member, Site
from toastc.system.errors import VerificationFailed


@dataclass(frozen=True, eq=False)
class Pairing:
    """Positions of a dense operand and the positions of the pruned one that belong there, flat over `axes`."""

    axes: tuple[int, ...]
    every: np.ndarray  # all positions the couplings speak of, in the dense weight
    kept: np.ndarray  # those that stay
    pruned: np.ndarray  # and where each of them stands in the pruned weight
    new: np.ndarray  # those of the kept whose numbers are mixtures


Operands = tuple[Any, Any]  # of the dense and of the pruned graph


@dataclass(frozen=True)
class Padded:
    """How many operands of the dense graph were padded, and those that had been cut."""

    count: int
    cut: list[tuple[Op, int]]


def pad_back(dense: Editor, dense_sites: Sequence[Site], pruned: Reader, pruned_sites: Sequence[Site], plan: Plan) -> Padded:
    """Give the dense graph the pruned graph's weights, zero-filled."""
    by_name = {s.name: s for s in pruned_sites}
    named = {name.rpartition(".")[0] for name, choice in plan.choices.items() if not isinstance(choice, Select)}
    touched: dict[Any, dict[tuple[int, ...], list[Pairing]]] = {}
    shifted: dict[tuple[Op, int], tuple[Op, int]] = {}
    for site in dense_sites:  # sites the plan does not name may share a weight with those it does
        other = by_name.get(site.name)
        if other is None and site.name in named:
            raise VerificationFailed(f"{site.name}: planned, but not found in the pruned model")
        if other is not None:
            named.discard(site.name)
            for operands, part in pair_site(site, other, plan, pruned):
                touched.setdefault(operands, {}).setdefault(part.axes, []).append(part)
            shifted |= shifted_biases(dense, site, pruned, other, plan)
    if named:
        raise VerificationFailed(f"{sorted(named)[0]}: planned, but not found in the dense model")
    cut: list[tuple[Op, int]] = []
    for (to, source), by_axes in touched.items():
        op, slot = to
        value = source[0].inputs[source[1]]
        pairings = [join(parts) for parts in by_axes.values()]
        if any(len(p.new) or len(np.unique(p.kept)) < len(np.unique(p.every)) for p in pairings):
            cut.append(to)
        free = shifted.pop(to, None) is not None
        dense.set_constant(op, slot, dense.shape(op.inputs[slot]), filler(dense, op, slot, pruned, value, pairings, free))
    for (op, slot), source in shifted.items():
        dense.set_constant(op, slot, dense.shape(op.inputs[slot]), copier(dense, op, slot, pruned, source))
    return Padded(len(touched), cut)


def shifted_biases(dense: Editor, site: Site, pruned: Reader, other: Site, plan: Plan) -> dict[tuple[Op, int], tuple[Op, int]]:
    """Biases that took in what was lost: where they are in the dense graph, and in the pruned one."""
    found = {}
    for coupling in site.couplings:
        choice, partner = plan.get(site.name, coupling.name), other.coupling(coupling.name)
        if choice is None or not choice.shifts or partner is None:
            continue
        for a, b in zip(coupling.members, matching(coupling, partner, site.name, pruned), strict=True):
            if a.role == "out":
                source = bias_of(pruned, b.operand[0])
                if source is None:
                    raise VerificationFailed(f"{site.name}.{coupling.name}: the plan shifts a bias, the pruned model has none")
                op: Op = a.operand[0]
                own = bias_of(dense, op)
                assert own is not None, "those that had none were given one"
                found[own] = source
    return found


def copier(dense: Reader, op: Op, slot: int, pruned: Reader, source: tuple[Op, int]) -> Callable[[], np.ndarray]:
    shape, value = dense.shape(op.inputs[slot]), source[0].inputs[source[1]]

    def make() -> np.ndarray:
        array = pruned.constant(value)
        if array.size != math.prod(shape):
            raise VerificationFailed(f"{dense.constant_name(op, slot)}: a shifted bias has {array.size} numbers, not {shape}")
        return array.reshape(shape)

    return make


def join(parts: Sequence[Pairing]) -> Pairing:
    columns = ([getattr(p, name) for p in parts] for name in ("every", "kept", "pruned", "new"))
    return Pairing(parts[0].axes, *map(np.concatenate, columns))


def filler(
    dense: Reader, op: Op, slot: int, pruned: Reader, value: Value, pairings: Sequence[Pairing], free: bool
) -> Callable[[], np.ndarray]:
    target, name = op.inputs[slot], dense.constant_name(op, slot)
    shape = dense.shape(target)

    def make() -> np.ndarray:
        wide, before = pruned.constant(value), dense.constant(target)
        for pairing in pairings:
            wide = spread(wide, pairing, before)
        if wide.shape != shape:
            raise VerificationFailed(f"{name}: the pruned weight of shape {wide.shape} can not be padded to {shape}")
        if free:
            return wide
        after = wide
        for pairing in pairings:
            before = blanked(before, pairing.axes, np.setdiff1d(pairing.every, pairing.kept))
            before = blanked(before, pairing.axes, pairing.new)
            after = blanked(after, pairing.axes, pairing.new)
        if not same_bits(before, after):
            raise VerificationFailed(f"{name}: numbers that the plan keeps are not those of the dense model")
        return wide

    return make


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype != b.dtype:
        return False
    bits = f"u{a.dtype.itemsize}"
    return np.array_equal(np.ascontiguousarray(a).view(bits), np.ascontiguousarray(b).view(bits))


def flatten(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """[outer, positions, inner]: the axes flattened into one, in the middle."""
    first, moved = min(axes), np.moveaxis(array, axes, range(min(axes), min(axes) + len(axes)))
    return moved.reshape(math.prod(moved.shape[:first]), -1, math.prod(moved.shape[first + len(axes) :]))


def unflatten(array: np.ndarray, axes: tuple[int, ...], shape: Sequence[int]) -> np.ndarray:
    """Back to `shape`, which is right everywhere but along the axes of others."""
    there = range(min(axes), min(axes) + len(axes))
    rest = [i for i in range(len(shape)) if i not in axes]
    order = [*rest[: min(axes)], *axes, *rest[min(axes) :]]
    return np.moveaxis(array.reshape([shape[i] for i in order]), there, axes)


def blanked(array: np.ndarray, axes: tuple[int, ...], positions: np.ndarray) -> np.ndarray:
    if not len(positions):
        return array
    flat = flatten(array, axes).copy()
    flat[:, positions] = 0
    return unflatten(flat, axes, array.shape)


def spread(small: np.ndarray, pairing: Pairing, dense: np.ndarray) -> np.ndarray:
    """Zero-fill along the pairing's axes; positions no coupling speaks of keep their order. Where some of them are gone, or all
    are there in another order, nobody reads them: they are as they were, and if somebody did, outputs would differ.
    """
    flat, whole = flatten(small, pairing.axes), flatten(dense, pairing.axes)
    others, left = np.setdiff1d(np.arange(whole.shape[1]), pairing.every), np.setdiff1d(np.arange(flat.shape[1]), pairing.pruned)
    alike = flat[:, 0].shape == whole[:, 0].shape
    unread = alike and (len(left) < len(others) or moved(flat[:, left], whole[:, others]))
    if len(others) != len(left) and not unread:
        raise VerificationFailed(f"a pruned weight keeps {len(left)} other rows, the dense one has {len(others)}")
    origin = np.full(whole.shape[1], -1)
    origin[pairing.kept] = pairing.pruned
    if not unread:
        origin[others] = left
    wide = np.take(flat, np.maximum(origin, 0), 1)
    wide[:, origin < 0] = 0
    if unread:
        wide[:, others] = whole[:, others]
    return unflatten(wide, pairing.axes, [dense.shape[i] if i in pairing.axes else n for i, n in enumerate(small.shape)])


def moved(some: np.ndarray, others: np.ndarray) -> bool:
    """Are these the others, bit by bit, in another order?"""
    a, b = ([array[:, i].tobytes() for i in range(array.shape[1])] for array in (some, others))
    return a != b and sorted(a) == sorted(b)


def pair_site(dense: Site, pruned: Site, plan: Plan, pruned_graph: Reader) -> list[tuple[Operands, Pairing]]:
    """For every member of the site: where its channels stand in the dense weight, and in the pruned one."""
    found = []
    asked = [c for c in (dense.heads, dense.inputs) if c is not None and plan.get(dense.name, c.name)]
    for coupling in (*dense.couplings, *asked):
        other = pruned.coupling(coupling.name)
        choice = plan.get(dense.name, coupling.name)
        if other is None or not coupling.members or coupling.reason or isinstance(choice, Select):
            continue
        place = kept_positions(dense, coupling, plan)
        for a, b in zip(coupling.members, matching(coupling, other, dense.name, pruned_graph), strict=True):
            rows = a.index[place[..., 0], place[..., 1]]
            if rows.shape != b.index.shape:
                raise VerificationFailed(
                    f"{dense.name}.{coupling.name}: the plan keeps {rows.shape}, the pruned model has {b.index.shape}"
                )
            new = rows.ravel() if choice is not None and choice.mixes(a.role) else rows.ravel()[:0]
            found.append(((a.operand, b.operand), Pairing(a.axes, a.index.ravel(), rows.ravel(), b.index.ravel(), new)))
    return found


def kept_positions(site: Site, coupling: Coupling, plan: Plan) -> np.ndarray:
    """[groups', width', 2]: group and position of each channel that stays."""
    choice, heads = plan.get(site.name, coupling.name), plan.get(site.name, "heads")
    index = np.broadcast_to(np.arange(coupling.width), (coupling.groups, coupling.width)) if choice is None else choice.index
    groups = np.arange(coupling.groups)
    if heads is not None and coupling.name in ("qk", "vo"):
        groups = np.asarray(heads.index[0])
    return np.stack([np.broadcast_to(groups[:, None], index[groups].shape), index[groups]], axis=-1)


def matching(dense: Coupling, pruned: Coupling, site: str, graph: Reader) -> list[Member]:
    """The pruned coupling's members in the dense one's order: same role, same turn."""
    left = list(pruned.members)
    found = []
    for member in dense.members:
        partner = next((m for m in left if m.role == member.role and m.axes == member.axes), None)
        if partner is None and pruned.width <= 1:
            partner = single(member, graph)
        if partner is None:
            raise VerificationFailed(
                f"{site}.{dense.name}: {member.weight} ({member.role}) has no counterpart in the pruned model"
            )
        left = [m for m in left if m is not partner]
        found.append(partner)
    return found


def single(member: Member, graph: Reader) -> Member | None:
    """Of a lone head nothing carries labels any more: its constant is the same operand of the node of the same name."""
    operand: Any = member.operand
    op, slot = operand
    twin = next((o for o in graph.ops if o.name == op.name and o.kind is op.kind), None)
    return None if twin is None else replace(member, index=np.zeros((1, 1), np.int64), operand=(twin, slot))
