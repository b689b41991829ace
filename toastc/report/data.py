"""What a compile has to say, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..plans.cost import saved_macs, saved_params
from ..plans.merges import Layout, Merge
from ..plans.plan import Keep, Plan
from ..plans.sites import Reject, Site


@dataclass(frozen=True)
class Size:
    macs: int
    params: int
    bytes: int | None  # None: not known before the model is written


@dataclass(frozen=True)
class CouplingRow:
    """Widths of one coupling, a head each where it has groups. `which` heads stay, where some go whole."""

    site: str
    coupling: str
    groups: int
    original: int
    kept: int
    reason: str = ""
    which: tuple[int, ...] = ()


@dataclass(frozen=True)
class SiteRow:
    """What one attention or FFN costs, before and after."""

    site: str
    kind: str
    macs: tuple[int, int]
    params: tuple[int, int]


@dataclass(frozen=True)
class TokenRow:
    """One merge. `grid` and `cells` (the token that each patch has become part of) where they are known beforehand."""

    before: str
    merge: str
    tokens: tuple[int, int]
    patches: tuple[int, int]
    grid: tuple[int, int] | None
    cells: tuple[int, ...] | None


@dataclass(frozen=True)
class Curve:
    """Why a width was chosen: the `loss` when so many channels stay, or what each channel is worth, the best first:
    its singular value (`spectrum`) or its `score`."""

    coupling: str
    kind: str
    at: tuple[int, ...]
    values: tuple[float, ...]
    chosen: int


@dataclass(frozen=True)
class Report:
    model: str
    recipe: str
    before: Size
    after: Size
    couplings: tuple[CouplingRow, ...]
    rejects: tuple[Reject, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    verified: Mapping[str, object] | None = None
    notes: Sequence[str] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    deployed: Mapping[str, object] | None = None
    kernels: Sequence[Mapping[str, object]] = ()
    sites: tuple[SiteRow, ...] = ()
    tokens: tuple[TokenRow, ...] = ()
    curves: tuple[Curve, ...] = ()
    photo: str | None = None  # one of the calibration inputs, to draw tokens on
    measured: Mapping[str, object] | None = None  # how far the outputs are from the dense model's
    promise: Mapping[str, object] | None = None  # what a target was promised of them, and what was measured of it

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def finite(value: Any) -> Any:
    """JSON knows no infinity: null."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def coupling_rows(sites: Sequence[Site], plan: Plan) -> tuple[CouplingRow, ...]:
    rows = []
    for site in sites:
        for coupling in site.every:
            choice = plan.get(site.name, coupling.name)
            kept = coupling.width if choice is None else choice.width
            if choice is None and (coupling.name == "inputs" or (coupling.name == "heads" and coupling.reason)):
                continue
            which = tuple(choice.index[0].tolist()) if coupling.name == "heads" and isinstance(choice, Keep) else ()
            rows.append(CouplingRow(site.name, coupling.name, coupling.groups, coupling.width, kept, coupling.reason, which))
    return tuple(rows)


def site_rows(sites: Sequence[Site], plan: Plan, dense: Mapping[str, int]) -> tuple[SiteRow, ...]:
    """`dense`: MACs before tokens were merged, where any were."""
    rows = []
    for site in sites:
        macs = dense.get(site.name, site.macs), site.macs - saved_macs([site], plan)
        rows.append(SiteRow(site.name, site.kind, macs, (site.params, site.params - saved_params([site], plan))))
    return tuple(rows)


def token_rows(steps: Sequence[tuple[Merge, Layout, Layout]]) -> tuple[TokenRow, ...]:
    """Of merges with what stood before and after each."""
    rows = []
    for merge, before, after in steps:
        first = steps[0][1]
        cells = None if after.of_patch is None else tuple((after.of_patch[first.leading :] - after.leading).tolist())
        grid = (after.height, after.width) if after.grid else None
        rows.append(TokenRow(merge.before, merge.merge, (before.count, after.count), (first.height, first.width), grid, cells))
    return tuple(rows)


def widths_by_site(report: Report) -> dict[str, dict[str, tuple[int, int]]]:
    """`{site: {coupling: (original, kept)}}`, of what can be cut."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for row in report.couplings:
        if not row.reason:
            found.setdefault(row.site, {})[row.coupling] = (row.original, row.kept)
    return found


def site_dict(site: Site) -> dict[str, object]:
    """One entry of `inspect --json`."""
    return {
        "name": site.name,
        "kind": site.kind,
        "heads": site.head_count,
        "head_dim": site.head_dim,
        "v_head_dim": site.v_head_dim,
        "hidden": site.hidden,
        "macs": site.macs,
        "params": site.params,
        "couplings": [
            {"name": c.name, "groups": c.groups, "width": c.width, "prunable": c.prunable, "reason": c.reason or None}
            for c in site.couplings
        ],
    }


def reject_dicts(sites: Sequence[Site], rejects: Sequence[Reject]) -> list[dict[str, str]]:
    """What can not be cut, and why: whole nodes, and heads that can not go whole."""
    heads = [Reject(f"{s.name}.heads", s.heads.reason) for s in sites if s.heads and s.heads.reason]
    return [{"node": r.node, "reason": r.reason} for r in (*rejects, *heads)]
