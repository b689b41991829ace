"""Several saved reports on one page: what each costs against what it lost, and which of them nothing beats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..system.errors import ToastcError
from ..system.vocabulary import Json, Read
from .figures import AFTER, BEFORE, Figure, axis, label, layout
from .page import plot, table, write

COSTS = {"macs": "MACs kept", "params": "parameters kept", "latency": "time, of dense"}
LOSSES = {"error": "rms error of the outputs", "wrong": "top-1 error, %"}


def compared(reports: Sequence[tuple[str, Read]]) -> list[Json]:
    """A row for each report: shares of what dense costs, and what was lost, where it was measured."""
    rows = [row_of(name, report) for name, report in reports]
    for row in rows:
        known = [(x, y) for x in COSTS for y in LOSSES if row[x] is not None and row[y] is not None]
        row["best"] = [f"{x}/{y}" for x, y in known if best(row, rows, x, y)]
    return rows


def row_of(name: str, report: Read) -> Json:
    row: Json = {"name": name, "model": report.get("model"), "recipe": report.get("recipe")}
    before, after = report.get("before") or {}, report.get("after") or {}
    for what in ("macs", "params"):
        known = before.get(what) and after.get(what) is not None
        row[what] = after[what] / before[what] if known else None
    rows = (report.get("bench") or {}).get("rows") or ()
    row["latency"] = 1 / max(r["speedup"] for r in rows) if rows else None
    row["error"] = (report.get("measured") or {}).get("error")
    models = list(((report.get("accuracy") or {}).get("models") or {}).values())
    row["wrong"] = 100 * (1 - models[-1]["top1"]) if models else None
    return row


def best(row: Read, rows: Sequence[Read], x: str, y: str) -> bool:
    """Is no other at once cheaper and better?"""
    others = [r for r in rows if r is not row and r[x] is not None and r[y] is not None]
    return not any(r[x] <= row[x] and r[y] <= row[y] and (r[x], r[y]) != (row[x], row[y]) for r in others)


def write_comparison(rows: Sequence[Read], target: Path) -> None:
    drawn = [scatter(rows, x, y) for y in LOSSES for x in COSTS if sum(r[x] is not None and r[y] is not None for r in rows) > 1]
    if not drawn:
        raise ToastcError("compare: no two reports have both a cost and a loss; calibrate on data, or add --accuracy with report")
    headings = ("report", "model", "recipe", *COSTS.values(), *LOSSES.values(), "nothing beats it in")
    cells = [[r["name"], r["model"], r["recipe"], *(r[k] for k in (*COSTS, *LOSSES)), ", ".join(r["best"])] for r in rows]
    body = [*(plot(f) for f in drawn), ("table", "All of them", table(headings, cells, "reports"))]
    write(target, "Comparison", f"{len(rows)} reports", body, drawn, {"reports": list(rows)})


def scatter(rows: Sequence[Read], x: str, y: str) -> Figure:
    known = sorted((r for r in rows if r[x] is not None and r[y] is not None), key=lambda r: (r[x], r[y]))
    front = [r for r in known if f"{x}/{y}" in r["best"]]
    points = {
        "type": "scatter", "mode": "markers+text", "x": [r[x] for r in known], "y": [r[y] for r in known],
        "text": [label(r["name"]) for r in known], "textposition": "top center", "name": "reports",
        "marker": {"size": 10, "color": [AFTER if r in front else BEFORE for r in known]},
        "hovertemplate": f"%{{text}}<br>{COSTS[x]}: %{{x:.3f}}<br>{LOSSES[y]}: %{{y:.4g}}<extra></extra>",
    }  # fmt: skip
    line = {
        "type": "scatter", "mode": "lines", "x": [r[x] for r in front], "y": [r[y] for r in front], "hoverinfo": "skip",
        "line": {"color": AFTER, "shape": "hv", "dash": "dot"}, "name": "nothing beats these",
    }  # fmt: skip
    drawn = {"data": [line, points], "layout": layout(420, xaxis=axis(COSTS[x]), yaxis=axis(LOSSES[y]), showlegend=False)}
    return Figure(
        f"{y}-{x}", f"{LOSSES[y]} against {COSTS[x]}", "Left and low is better; the line joins what nothing beats.", drawn
    )
