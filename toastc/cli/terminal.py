"""Reports for a terminal: tables with rich, plain lines where nobody watches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ..report.data import Report
from ..report.words import change, human
from ..system.vocabulary import Read


def print_report(report: Report, console: Console) -> None:
    table = Table(title=f"{report.model}, recipe {report.recipe}", title_justify="left")
    table.add_column("site", overflow="fold")  # a long name takes several lines, and no figure is cut
    for heading in ("heads", "qk", "vo", "hidden"):
        table.add_column(heading, justify="right", no_wrap=True)
    for site, cells in by_site(report).items():
        table.add_row(site, *[cells.get(name, "") for name in ("heads", "qk", "vo", "hidden")])
    console.print(table)
    sizes = Table(show_edge=False)
    for heading in ("", "before", "after", "change"):
        sizes.add_column(heading, justify="right" if heading else "left")
    for name in ("macs", "params", "bytes"):
        a, b = getattr(report.before, name), getattr(report.after, name)
        unit = "B" if name == "bytes" else ""
        sizes.add_row("MACs" if name == "macs" else name, human(a, unit), human(b, unit), change(a, b))
    console.print(sizes)
    print_kernels(report.kernels, console)
    for reject in report.rejects:
        console.print(f"not cut: {reject.node}: {reject.reason}", markup=False, highlight=False)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    if report.verified is not None:
        v = report.verified
        console.print(f"verified: error {v['error']:.1e} of the output scale (allowed {v['tolerance']:.0e})", highlight=False)
    if report.deployed is not None:
        d = report.deployed
        far = "not compared"
        if d["error"] is not None:
            far = f"error {d['error']:.1e} rms, {d['worst']:.1e} of the output scale at most, on {d['inputs']} {d['of']}"
        console.print(f"for {d['runtime']}, {d['dtype']}: {d['attentions']} attentions are one node; {far}", highlight=False)
    console.print("seconds: " + ", ".join(f"{k} {s:.2f}" for k, s in report.seconds.items()), highlight=False)


def print_kernels(rows: Sequence[Read], console: Console, every: bool = False) -> None:
    """Of half floats: how many attentions get which kernel, and what would help those that lost theirs, or `every` one."""
    for setting in dict.fromkeys(r["setting"] for r in rows if r["setting"].endswith("fp16")):
        own = [r for r in rows if r["setting"] == setting]
        before, after = (Counter(r[when] for r in own) for when in ("before", "after"))
        words = " -> ".join(", ".join(f"{n} {name}" for name, n in some.items()) for some in (before, after))
        console.print(f"kernels, {setting}: {words if before != after else words.split(' -> ')[0]}", highlight=False)
        hints = [r for r in own if r["hint"] and (every or r["before"] != r["after"])]
        if hints:
            more = f" (and {len(hints) - 1} more)" if len(hints) > 1 else ""
            console.print(f"  {hints[0]['site']}: {hints[0]['hint']}{more}", markup=False, highlight=False)


def by_site(report: Report) -> dict[str, dict[str, str]]:
    sites: dict[str, dict[str, str]] = {}
    for row in report.couplings:
        text = str(row.original) if row.kept == row.original else f"{row.kept}/{row.original}"
        sites.setdefault(row.site, {})[row.coupling] = "-" if row.reason and row.coupling != "heads" else text
    return sites


def print_sites(data: Read, console: Console) -> None:
    table = Table(title=str(data["model"]), title_justify="left")
    table.add_column("site", overflow="fold")  # a long name takes several lines, and no figure is cut
    for heading in ("heads", "qk", "vo", "hidden", "MACs", "params"):
        table.add_column(heading, justify="right", no_wrap=True)
    stuck = {r["node"] for r in data["rejects"]}
    for site in data["sites"]:
        fixed = {c["name"] for c in site["couplings"] if not c["prunable"]}
        widths = {"qk": site["head_dim"], "vo": site["v_head_dim"], "hidden": site["hidden"]}
        cells = [f"({n})" if name in fixed else str(n or "") for name, n in widths.items()]
        heads = f"({site['heads']})" if f"{site['name']}.heads" in stuck else str(site["heads"] or "")
        table.add_row(site["name"], heads, *cells, human(site["macs"]), human(site["params"]))
    console.print(table)
    for reject in data["rejects"]:
        console.print(f"rejected: {reject['node']}: {reject['reason']}", markup=False, highlight=False)
    for whole in data["whole"]:
        said = f"stays whole: {whole['node']}: {whole['share']:.0%} of the MACs, because {whole['reason']}"
        console.print(said, markup=False, highlight=False)
    size = f"model: {human(data['macs'])} MACs, {data['share']:.0%} of them in what can be cut, {human(data['params'])} params"
    console.print(f"{size}; (n) can not be cut", highlight=False)


def print_bench(data: Read, console: Console) -> None:
    table = Table()
    for heading in ("", "dense ms", "pruned ms", "speed-up", "inputs/s", "peak MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in data["rows"]:
        models = row["dense"], row["pruned"]
        low, high = row["speedup_iqr"]
        table.add_row(
            str(row["batch"]),
            *(f"{m['median_ms']:.4g} +- {m['iqr_ms'] / 2:.2g}" for m in models),
            f"{row['speedup']:.2f} ({low:.2f}-{high:.2f})",
            " > ".join(f"{m['per_second']:.0f}" for m in models),
            " > ".join(f"{m['peak_mb']:.0f}" if m.get("peak_mb") is not None else "?" for m in models),
        )
    console.print(table)
    promise = "the MACs are not known" if data["ideal"] is None else f"the MACs promise {data['ideal']:.2f}"
    threads = f"{data['threads']} threads" if data["threads"] else "threads as the runtime likes"
    where = ", ".join(dict.fromkeys(f"{r['provider']} {r.get('mode', '')}".strip() for r in data["rows"]))
    console.print(f"{promise}; {where}, {threads}; medians, +- half the interquartile range", highlight=False)
    for note in data["notes"]:
        console.print(f"note: {note}", highlight=False)
