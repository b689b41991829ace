"""The rows of the zoo, and the page that is written from them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

TYPICAL = "dynamo20-dyn"  # the variant a family's numbers are taken from, and the only one of the full size
BLAMED = {"exporter": "the exporter", "failed": "toastc"}
PAGE = """# The zoo

{what}
**{proven} of {total} proven** ({small} small models of {families} families, {full} real architectures), worst error {worst:.1e}
of the largest output (allowed: 1e-04). {refused} are rightly refused: nothing in them may be cut. In {exporter} the exporter or
ONNX Runtime fails before toastc is asked; in {failed} toastc fails.

## Families, as small models

Sites are attentions + FFNs; sizes, and what was not cut, are those of the `dynamo20-dyn` export.

{family_table}

## What failed

{failure_table}

## Real architectures

Opset 20, dynamic batch. MACs are one sample's (`hf_bert`: of 16 tokens). Seconds are those of `toastc.prune` on busy cores.

{full_table}
"""


@dataclass
class Row:
    """One model. `status` is proven, refused (rightly: it has nothing to cut), exporter or failed (toastc did)."""

    family: str
    variant: str
    status: str = "failed"
    reason: str = ""
    sites: Sequence[int] = ()  # attentions, FFNs; none where there is no report (torch.compile)
    params: Sequence[int] = (0, 0)
    macs: Sequence[int] = (0, 0)
    error: float = 0.0
    seconds: float = 0.0  # the whole of toastc
    proof: float = 0.0  # the part of it that is verification
    rejects: Sequence[str] = ()


def lines_of(rows: Iterable[Row]) -> str:
    """A row a line, without what is as in an empty one."""
    empty = asdict(Row("", ""))
    return "[\n" + ",\n".join(json.dumps({k: v for k, v in asdict(r).items() if v != empty[k]}) for r in rows) + "\n]\n"


def number(value: int) -> str:
    """Three digits and K, M or G."""
    scale, unit = next(((s, u) for s, u in ((1e9, " G"), (1e6, " M"), (1e3, " K")) if value >= s), (1, ""))
    return f"{value / scale:#.3g}".rstrip(".") + unit


def table(head: str, lines: Iterable[Sequence[object]]) -> str:
    """A markdown table; a column whose name ends in a colon holds numbers."""
    columns = head.split(" | ")
    rule = ["---:" if c.endswith(":") else "---" for c in columns]
    every = [[c.rstrip(":") for c in columns], rule, *([re.sub(r"([|[])", r"\\\1", str(c)) for c in line] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


def family_line(rows: Sequence[Row]) -> list[object]:
    """One family over all its variants."""
    proven = [r for r in rows if r.status == "proven"]
    seen = sorted({" + ".join(map(str, r.sites)) for r in proven if r.sites})
    main = next((r for r in proven if r.variant == TYPICAL), (proven or rows)[0])
    why = "; ".join(f"{main.rejects.count(r)} × {r}" for r in dict.fromkeys(main.rejects)) if proven else main.reason
    change = [f"{number(a)} → {number(b)}" if a else "" for a, b in (main.params, main.macs)]
    worst = max((r.error for r in proven), default=0.0)
    return [main.family, " or ".join(seen), *change, f"{worst:.0e}", f"{len(proven)}/{len(rows)}", why]


def page(what: str, small: Sequence[Row], full: Sequence[Row]) -> str:
    """The page: what this is, totals, families, failures (variants of one reason on one line), real architectures."""
    every, same = [*small, *full], defaultdict[tuple[str, ...], list[Row]](list)
    for row in (r for r in every if r.status in BLAMED):
        same[row.family, row.status, re.sub(r"\d", "", row.reason)].append(row)
    bad = [[k[0], ", ".join(r.variant for r in rows), BLAMED[k[1]], rows[0].reason] for k, rows in same.items()]
    families = [[r for r in small if r.family == name] for name in dict.fromkeys(r.family for r in small)]
    lines = ([*family_line([r])[:5], f"{r.seconds:.1f}", f"{r.proof:.1f}"] for r in full if r.status == "proven")
    return PAGE.format(
        **{s: sum(r.status == s for r in every) for s in ("proven", "refused", "exporter", "failed")},
        what=what, total=len(every), small=len(small), families=len(families), full=len(full),
        worst=max((r.error for r in every if r.status == "proven"), default=0.0),
        family_table=table("family | sites | parameters | MACs | worst error: | proven: | not cut", map(family_line, families)),
        failure_table=table("family | variants | whose failure | reason", bad),
        full_table=table("architecture | sites | parameters | MACs | error: | seconds: | of these proof:", lines),
    )  # fmt: skip
