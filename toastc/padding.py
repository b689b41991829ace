"""Padding back: the shrunken weights, filled up with zeros to their original shapes.

Run in the *original* graph they must give what the shrunken graph gives, because a padded channel contributes
exactly zero: a padded q.k pair adds 0 to the logit, a padded v or hidden channel meets a zero column. Both
graphs are matched, so this trusts nothing the shrinking wrote but the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .errors import VerificationFailed
from .graphs import Graph
from .plan import Plan
from .sites import Coupling, Member, Site


@dataclass(frozen=True, eq=False)
class Pairing:
    """Positions of a dense operand and the positions of the pruned one that belong there, flat over `axes`."""

    axes: tuple[int, ...]
    dense: np.ndarray
    pruned: np.ndarray


def pad_back(dense: Graph, dense_sites: Sequence[Site], pruned: Graph, pruned_sites: Sequence[Site], plan: Plan) -> int:
    """Give the dense graph the pruned graph's weights, zero-filled; returns how many operands it padded."""
    by_name = {s.name: s for s in pruned_sites}
    pairs: dict[tuple[object, object], list[Pairing]] = {}
    named = {name.rpartition(".")[0] for name in plan}
    for site in dense_sites:
        if site.name not in named:
            continue
        named.discard(site.name)
        if site.name not in by_name:
            raise VerificationFailed(f"{site.name}: planned, but not found in the pruned model")
        for key, pairing in pair_site(site, by_name[site.name], plan, pruned):
            pairs.setdefault(key, []).append(pairing)
    if named:
        raise VerificationFailed(f"{sorted(named)[0]}: planned, but not found in the dense model")
    for (to, source), pairings in pairs.items():
        op, slot = to  # type: ignore[misc]
        value = source[0].inputs[source[1]]  # type: ignore[index]
        shape = dense.shape(op.inputs[slot])
        dense.set_constant(op, slot, shape, filler(pruned, value, shape, pairings))
    return len(pairs)


def filler(pruned: Graph, value: object, shape: tuple[int, ...], pairings: Sequence[Pairing]) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        small = pruned.constant(value)  # type: ignore[arg-type]
        for pairing in pairings:
            small = spread(small, pairing, shape)
        if small.shape != shape:
            raise VerificationFailed(f"a pruned weight of shape {small.shape} can not be padded to {shape}")
        return small

    return make


def spread(small: np.ndarray, pairing: Pairing, shape: tuple[int, ...]) -> np.ndarray:
    """Zero-fill along the pairing's axes; positions no coupling speaks of keep their order."""
    count = len(pairing.axes)
    front = np.moveaxis(small, pairing.axes, range(count))
    rest = front.shape[count:]
    flat = front.reshape(-1, *rest)
    sizes = [shape[a] for a in pairing.axes]
    wide = np.zeros((int(np.prod(sizes)), *rest), small.dtype)
    others = np.setdiff1d(np.arange(len(wide)), pairing.dense[:, 0])
    left = np.setdiff1d(np.arange(len(flat)), pairing.pruned)
    if len(others) != len(left):
        raise VerificationFailed(f"a pruned weight keeps {len(left)} other rows, the dense one has {len(others)}")
    wide[others] = flat[left]
    kept = pairing.dense[:, 1] >= 0
    wide[pairing.dense[kept, 0]] = flat[pairing.pruned]
    return np.moveaxis(wide.reshape(*sizes, *rest), range(count), pairing.axes)


def pair_site(dense: Site, pruned: Site, plan: Plan, pruned_graph: Graph) -> list[tuple[tuple[object, object], Pairing]]:
    heads = plan.get(dense.name, "heads")
    found: dict[tuple[object, object, tuple[int, ...]], list[tuple[np.ndarray, np.ndarray]]] = {}
    every = [*dense.couplings, *([dense.heads] if dense.heads and heads is not None else [])]
    for coupling in every:
        other = pruned.coupling(coupling.name)
        if other is None or not coupling.members:
            continue
        kept = kept_positions(dense, coupling, plan)
        for a, b in zip(coupling.members, matching(coupling, other, dense.name, pruned_graph), strict=True):
            rows = a.index[kept[..., 0], kept[..., 1]]
            if rows.shape != b.index.shape:
                raise VerificationFailed(
                    f"{dense.name}.{coupling.name}: the plan keeps {rows.shape}, the pruned model has {b.index.shape}"
                )
            found.setdefault((a.operand, b.operand, a.axes), []).append((np.stack([a.index.ravel(), mark(a, rows)], 1), b.index.ravel()))
    result = []
    for (a_operand, b_operand, axes), parts in found.items():
        dense_rows = np.concatenate([p[0] for p in parts])
        # one row per dense position: (position, order of its partner or -1); partners stand in that order
        order = np.concatenate([np.where(p[0][:, 1] >= 0, p[0][:, 1], -1) for p in parts])
        offsets = np.cumsum([0, *[len(p[1]) for p in parts[:-1]]])
        order = np.concatenate([np.where(p[0][:, 1] >= 0, p[0][:, 1] + o, -1) for p, o in zip(parts, offsets, strict=True)])
        rows_sorted = dense_rows[order >= 0][np.argsort(order[order >= 0])]
        gone = dense_rows[order < 0]
        table = np.concatenate([np.stack([rows_sorted[:, 0], np.arange(len(rows_sorted))], 1), np.stack([gone[:, 0], np.full(len(gone), -1)], 1)])
        result.append(((a_operand, b_operand), Pairing(axes, table, np.concatenate([p[1] for p in parts]))))
    return result


def mark(member: Member, rows: np.ndarray) -> np.ndarray:
    """For every position of a dense member, its rank among the kept ones, or -1."""
    rank = {int(p): i for i, p in enumerate(rows.ravel())}
    return np.array([rank.get(int(p), -1) for p in member.index.ravel()])


def kept_positions(site: Site, coupling: Coupling, plan: Plan) -> np.ndarray:
    """[groups', width', 2]: group and position of each channel that stays."""
    choice, heads = plan.get(site.name, coupling.name), plan.get(site.name, "heads")
    index = np.broadcast_to(np.arange(coupling.width), (coupling.groups, coupling.width)) if choice is None else choice.index
    groups = np.arange(coupling.groups)
    if heads is not None and coupling.name in ("qk", "vo"):
        groups = np.asarray(heads.index[0])
    return np.stack([np.broadcast_to(groups[:, None], index[groups].shape), index[groups]], axis=-1)


def matching(dense: Coupling, pruned: Coupling, site: str, graph: Graph) -> list[Member]:
    """The pruned coupling's members in the dense one's order: same role, same turn."""
    left = list(pruned.members)
    found = []
    for member in dense.members:
        partner = next((m for m in left if m.role == member.role and m.axes == member.axes), None)
        if partner is None and pruned.width <= 1:
            partner = single(member, graph)
        if partner is None:
            raise VerificationFailed(f"{site}.{dense.name}: {member.weight} ({member.role}) has no counterpart in the pruned model")
        left = [m for m in left if m is not partner]
        found.append(partner)
    return found


def single(member: Member, graph: Graph) -> Member | None:
    """Of a lone head nothing carries labels any more: its constant is the same operand of the node of the same name."""
    op, slot = member.operand  # type: ignore[misc]
    twin = next((o for o in graph.ops if o.name == op.name and o.type == op.type), None)
    return None if twin is None else replace(member, index=np.zeros((1, 1), np.int64), operand=(twin, slot))
