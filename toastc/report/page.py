"""A report as one self-contained page: what people would rather look at than read, and every number behind it.

The page carries its data and its plotting library, and a policy that forbids it to fetch anything.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from ..system.files import write_beside
from ..system.vocabulary import Read
from .data import finite
from .figures import Figure, figures, shown
from .grids import token_grids
from .words import change, human

Section = tuple[str, str, str]  # its place, its heading, its HTML


def write_page(report: Read, target: Path) -> None:
    drawn = list(figures(report))
    body = [cards(report), *sections(report, drawn)]
    lead = f"toastc, recipe {report['recipe']}" if report.get("recipe") else "toastc"
    write(target, str(report.get("model") or "toastc"), lead, body, drawn, report)


def write(target: Path, title: str, lead: str, body: Sequence[Section], drawn: Sequence[Figure], data: Read) -> None:
    page = Template(asset("page.html")).substitute(
        title=shown(title), heading=shown(title), lead=shown(lead), style=asset("page.css"), script=asset("page.js"),
        nav=" ".join(f'<a href="#{shown(key)}">{shown(heading)}</a>' for key, heading, _ in body if heading),
        body="\n".join(section(*part) for part in body), report=inert(data), plotly=library(),
        figures=inert([{"key": f.key, "drawn": f.drawn} for f in drawn]),
    )  # fmt: skip
    with write_beside(target) as temporary:
        temporary.write_text(page, encoding="utf-8")


def asset(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def library() -> str:
    """plotly.js as its Python package ships it, compressed: a quarter of its size."""
    code = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(code, 9, mtime=0)).decode()


def inert(data: Any) -> str:
    """JSON that can not end the element it stands in."""
    return json.dumps(finite(data), allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def section(key: str, heading: str, content: str) -> str:
    title = f"<h2>{shown(heading)}</h2>" if heading else ""
    return f'<section id="{shown(key)}">{title}{content}</section>'


def plot(figure: Figure) -> Section:
    content = f'<p class="caption">{shown(figure.caption)}</p><div class="plot" id="plot-{shown(figure.key)}"></div>'
    return figure.key, figure.title, content


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], name: str = "") -> str:
    """Cells are text; numbers are sorted as numbers."""
    head = "".join(f"<th>{shown(h)}</th>" for h in headings)
    body = "".join(f"<tr>{''.join(cell(c) for c in row)}</tr>" for row in rows)
    own = f' id="{name}"' if name else ""
    whole = f'<table class="sortable"{own}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{whole}</div>'


def cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f'<td class="text">{shown("" if value is None else value)}</td>'
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f'<td data-v="{value!r}">{text}</td>'


def cards(report: Read) -> Section:
    made = []
    for name, unit in (("macs", ""), ("params", ""), ("bytes", "B")):
        a, b = ((report.get(when) or {}).get(name) for when in ("before", "after"))
        word = "MACs" if name == "macs" else name
        if a is not None:
            made.append(card(word, change(a, b) or human(a, unit), f"{human(a, unit)} → {human(b, unit)}"))
        elif b is not None:
            made.append(card(word, human(b, unit), "of the model as it is"))
    proof, apart = report.get("verified"), report.get("measured")
    if proof:
        word = "verified" if proof["ok"] else "NOT EQUAL"
        made.append(card("proof", word, f"error {proof['error']:.1e}, allowed {proof['tolerance']:.0e}", proof["ok"]))
    if apart and apart["error"] is not None:
        made.append(card("outputs", f"{100 * apart['error']:.2f} %", f"rms error to dense, {apart['inputs']} {apart['of']}"))
    if report.get("bench"):
        best = max(report["bench"]["rows"], key=lambda row: row["speedup"])
        made.append(card("speed", f"{best['speedup']:.2f} x", f"batch {best['batch']}, {best['provider']}"))
    return "summary", "", f'<div class="cards">{"".join(made)}</div>'


def card(name: str, value: str, more: str, good: bool | None = None) -> str:
    tone = "" if good is None else ' class="good"' if good else ' class="bad"'
    return f'<div class="card"><span>{shown(name)}</span><b{tone}>{shown(value)}</b><span>{shown(more)}</span></div>'


def sections(report: Read, drawn: Sequence[Figure]) -> Iterable[Section]:
    for figure in drawn:
        yield plot(figure)
    if report.get("tokens"):
        yield "tokens", "Tokens", token_grids(report["tokens"], report.get("photo"))
    if report.get("couplings"):
        headings = ("site", "coupling", "heads", "channels", "kept", "share kept", "why not cut")
        yield "couplings", "Every coupling", table(headings, (
            (r["site"], r["coupling"], r["groups"], r["original"], r["kept"], r["kept"] / max(r["original"], 1), r["reason"])
            for r in report["couplings"]
        ), "couplings-table")  # fmt: skip
    if report.get("bench"):
        yield "bench-table", "Speed, in figures", bench_table(report["bench"])
    if report.get("accuracy"):
        yield "accuracy", "Accuracy", accuracy_table(report["accuracy"])
    if report.get("kernels"):
        rows = [[r.get(k) for k in ("site", "setting", "before", "after", "hint")] for r in report["kernels"]]
        yield "kernels", "Attention kernels", table(("site", "setting", "before", "after", "hint"), rows)
    if report.get("deployed"):
        told = [(k, str(v)) for k, v in report["deployed"].items() if k != "notes"]
        yield "deployed", "For the runtime", table(("", "value"), told)
    said = [*(f"not cut: {r['node']}: {r['reason']}" for r in report.get("rejects") or ()), *(report.get("notes") or ())]
    if said:
        yield "notes", "Notes", "<ul>" + "".join(f"<li>{shown(line)}</li>" for line in said) + "</ul>"
    if report.get("settings"):
        yield "again", "Do it again", again(report)


def bench_table(found: Read) -> str:
    headings = ("batch", "dense ms", "pruned ms", "speed-up", "quartiles", "inputs/s", "peak MB", "where")
    rows = []
    for r in found["rows"]:
        low, high = r["speedup_iqr"]
        rows.append((r["batch"], r["dense"]["median_ms"], r["pruned"]["median_ms"], r["speedup"], f"{low:.2f}-{high:.2f}",
                     r["pruned"]["per_second"], r["pruned"].get("peak_mb"), f"{r['provider']} {r.get('mode', '')}"))  # fmt: skip
    notes = "".join(f"<p>{shown(note)}</p>" for note in found.get("notes") or ())
    return table(headings, rows) + notes


def accuracy_table(found: Read) -> str:
    """What tools/eval_imagenet.py writes."""
    rows = [(name, 100 * r["top1"], 100 * r["top5"] if "top5" in r else None) for name, r in found["models"].items()]
    return f"<p class='caption'>{shown(found['images'])} images</p>" + table(("model", "top-1 %", "top-5 %"), rows)


def again(report: Read) -> str:
    settings = dict(report["settings"])
    command, versions, machine = (settings.pop(k, None) for k in ("command", "versions", "machine"))
    rows = [*settings.items(), *(f for group in (versions, machine) for f in (group or {}).items())]
    seconds = ", ".join(f"{k} {s:.2f}" for k, s in (report.get("seconds") or {}).items())
    text = f"<pre>{shown(command)}</pre>" if command else ""
    return text + table(("", "value"), [(k, str(v)) for k, v in rows]) + f'<p class="caption">seconds: {shown(seconds)}</p>'
