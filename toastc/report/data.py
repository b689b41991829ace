"""What a compile has to say, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from ..plan import Plan
from ..sites import Reject, Site


@dataclass(frozen=True)
class Size:
    macs: int
    params: int
    bytes: int | None  # None: not known before the model is written


@dataclass(frozen=True)
class CouplingRow:
    """Widths of one coupling, a head each where it has groups."""

    site: str
    coupling: str
    groups: int
    original: int
    kept: int
    reason: str = ""


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

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def coupling_rows(sites: Sequence[Site], plan: Plan) -> tuple[CouplingRow, ...]:
    rows = []
    for site in sites:
        for coupling in site.every:
            choice = plan.get(site.name, coupling.name)
            kept = coupling.width if choice is None else choice.width
            if choice is None and (coupling.name == "inputs" or (coupling.name == "heads" and coupling.reason)):
                continue
            rows.append(CouplingRow(site.name, coupling.name, coupling.groups, coupling.width, kept, coupling.reason))
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
