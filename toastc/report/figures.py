"""The figures of a page, as plotly's own dictionaries, made from a report's plain data.

Names of a model's parts are text, never markup: plotly reads a little HTML, so everything that comes from a model is escaped.
Colours that must follow the page's light or dark are left to the page.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..system.vocabulary import Json, Read

BEFORE, AFTER = "#9aa7b4", "#e8743b"
SCALE = [[0.0, "#fbe3d4"], [0.5, "#f0a46f"], [1.0, "#b8410f"]]
KINDS = {
    "loss": ("What each width costs", "channels kept", "expected squared error at the outputs"),
    "spectrum": ("Singular values", "direction", "singular value (root mean square over heads)"),
    "score": ("Scores", "channel, the best first", "score (mean over heads)"),
}
ROW = 22  # pixels of one block in a figure


@dataclass(frozen=True)
class Figure:
    """`key` is its place in the page, `drawn` what plotly is given."""

    key: str
    title: str
    caption: str
    drawn: Json


def shown(text: object) -> str:
    """As text for HTML: markup is escaped, what can not be seen is spelt."""
    return html.escape("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)))


def label(text: object) -> str:
    """The same for plotly, which knows fewer ways to write a character."""
    return shown(text).replace("&quot;", '"').replace("&#x27;", "'")


def figures(report: Read) -> Iterator[Figure]:
    couplings = [row for row in report.get("couplings") or () if not row["reason"]]
    if couplings:
        yield widths(couplings)
    if report.get("sites"):
        yield costs(report, "macs", "MACs")
        yield costs(report, "params", "parameters")
    heads = [row for row in couplings if row["coupling"] == "heads" and row.get("which")]
    if heads:
        yield kept_heads(heads)
    for kind in KINDS:
        for name in dict.fromkeys(c["coupling"].rpartition(".")[2] for c in report.get("curves") or () if c["kind"] == kind):
            yield lines(report["curves"], kind, name)
    if report.get("bench"):
        yield bench(report["bench"])


def layout(height: int, **more: Any) -> Json:
    return {"height": height, "margin": {"l": 8, "r": 8, "t": 34, "b": 8}, "hovermode": "closest", **more}


def axis(title: str = "", **more: Any) -> Json:
    return {"title": {"text": title}, "automargin": True, **more}


def widths(rows: Sequence[Read]) -> Figure:
    """A row for each block, a column for each kind of coupling; the colour is the share kept."""
    kinds = [k for k in ("heads", "qk", "vo", "hidden", "inputs") if any(row["coupling"] == k for row in rows)]
    at = {(row["site"].rpartition(".")[0] or row["site"], row["coupling"]): row for row in rows}
    if len(at) < len(rows):  # several sites of a kind in what the name says is one block
        at = {(row["site"], row["coupling"]): row for row in rows}
    sites = list(dict.fromkeys(site for site, _ in at))
    share = [[at[s, k]["kept"] / at[s, k]["original"] if (s, k) in at else None for k in kinds] for s in sites]
    text = [[f"{at[s, k]['kept']}/{at[s, k]['original']}" if (s, k) in at else "" for k in kinds] for s in sites]
    trace = {
        "type": "heatmap", "x": kinds, "y": [label(s) for s in sites], "z": share, "text": text, "texttemplate": "%{text}",
        "zmin": 0, "zmax": 1, "colorscale": SCALE, "xgap": 2, "ygap": 2, "showscale": False, "hoverongaps": False,
        "hovertemplate": "%{y} %{x}: %{text} kept (%{z:.0%})<extra></extra>",
    }  # fmt: skip
    drawn = {"data": [trace], "layout": layout(ROW * len(sites) + 60, xaxis=axis(side="top"), yaxis=axis(autorange="reversed"))}
    return Figure("widths", "What stayed", "Channels of a head, heads and FFN channels kept, of those there were.", drawn)


def costs(report: Read, what: str, word: str) -> Figure:
    """Before and after, site by site; what is no site (embedding, head, norms) is the last row."""
    rows = report["sites"]
    names = [label(row["site"]) for row in rows]
    traces = []
    for number, (when, colour) in enumerate((("before", BEFORE), ("after", AFTER))):
        values = [row[what][number] for row in rows]
        total = (report.get(when) or {}).get(what)
        if None not in values:  # of a model alone, nobody knows what it was before
            own = [*values, total - sum(values)] if total is not None else values
            traces.append({
                "type": "bar", "orientation": "h", "name": when, "x": own, "y": [*names, "everything else"][: len(own)],
                "marker": {"color": colour}, "hovertemplate": f"%{{y}}, {when}: %{{x:,}} {word}<extra></extra>",
            })  # fmt: skip
    drawn = {
        "data": traces,
        "layout": layout(
            (ROW + 6) * (len(names) + 1) + 80, barmode="group", bargap=0.25, xaxis=axis(word),
            yaxis=axis(autorange="reversed"), legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"},
        ),
    }  # fmt: skip
    return Figure(what, f"Where the {word} went", "Of one input, block by block.", drawn)


def kept_heads(rows: Sequence[Read]) -> Figure:
    most = max(row["original"] for row in rows)
    grid = [[(h in row["which"]) * 1.0 if h < row["original"] else None for h in range(most)] for row in rows]
    words = [["kept" if h in row["which"] else "gone" for h in range(most)] for row in rows]
    trace = {
        "type": "heatmap", "x": list(range(most)), "y": [label(row["site"]) for row in rows], "z": grid, "text": words,
        "colorscale": [[0, "#d5dbe1"], [1, AFTER]], "zmin": 0, "zmax": 1, "xgap": 2, "ygap": 2, "showscale": False,
        "hovertemplate": "%{y}, head %{x}: %{text}<extra></extra>",
    }  # fmt: skip
    drawn = {"data": [trace], "layout": layout(ROW * len(rows) + 80, xaxis=axis("head"), yaxis=axis(autorange="reversed"))}
    return Figure("heads", "Heads that stayed", "Where whole heads went; blocks that kept all of theirs are not shown.", drawn)


def lines(curves: Sequence[Read], kind: str, name: str) -> Figure:
    """One line for each block, from the first (pale) to the last, and the width that was chosen on it."""
    title, across, up = KINDS[kind]
    own = [c for c in curves if c["kind"] == kind and c["coupling"].rpartition(".")[2] == name]
    traces: list[Json] = []
    for number, curve in enumerate(own):
        site, at, values = label(curve["coupling"].rpartition(".")[0]), list(curve["at"]), list(curve["values"])
        depth = number / max(len(own) - 1, 1)
        colour = f"hsl({215 - 195 * depth:.0f}, 62%, 52%)"
        chosen = min(curve["chosen"], at[-1])
        hover = "%{meta}, %{x}: %{y:.4g}<extra></extra>"
        traces.append({"type": "scatter", "mode": "lines", "name": site, "x": at, "y": values, "line": {"color": colour},
                       "legendgroup": site, "meta": site, "hovertemplate": hover})  # fmt: skip
        traces.append({"type": "scatter", "mode": "markers", "name": f"{site}, chosen", "x": [chosen],
                       "y": [values[at.index(chosen)]], "marker": {"color": colour, "size": 9, "symbol": "circle-open"},
                       "legendgroup": site, "meta": site, "showlegend": False, "hovertemplate": f"chosen: {hover}"})  # fmt: skip
    positive = [v for trace in traces for v in trace["y"] if v > 0]
    scale = {"type": "log", "exponentformat": "power"} if kind != "score" and positive else {}
    drawn = {"data": traces, "layout": layout(420, xaxis=axis(across), yaxis=axis(up, **scale), legend={"font": {"size": 10}})}
    return Figure(f"{kind}-{name}", f"{title}: {name}", "A line for each block; the circle is what was chosen.", drawn)


def bench(found: Read) -> Figure:
    rows = found["rows"]
    low_high = [row["speedup_iqr"] for row in rows]
    speeds = [row["speedup"] for row in rows]
    names = [f"batch {row['batch']}" for row in rows]
    bars = {
        "type": "bar", "x": names, "y": speeds, "marker": {"color": AFTER}, "name": "measured",
        "error_y": {"type": "data", "symmetric": False, "array": [h - s for s, (_, h) in zip(speeds, low_high, strict=True)],
                    "arrayminus": [s - low for s, (low, _) in zip(speeds, low_high, strict=True)]},
        "hovertemplate": "%{x}: %{y:.2f} times as fast<extra></extra>",
    }  # fmt: skip
    traces: list[Json] = [bars]
    if found.get("ideal"):
        traces.append({"type": "scatter", "mode": "lines", "x": names, "y": [found["ideal"]] * len(rows), "name": "MACs promise",
                       "line": {"color": BEFORE, "dash": "dash"}})  # fmt: skip
    drawn = {"data": traces, "layout": layout(320, yaxis=axis("times as fast as dense", rangemode="tozero"), xaxis=axis())}
    return Figure("bench", "Measured speed", "Ratios of runs that took turns: median, and quartiles as bars.", drawn)
