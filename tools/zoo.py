"""The matrix: every model family through every exporter, cut by toastc, and proven by padding back.

    python tools/zoo.py --small                                  two-block models, all families, all variants
    python tools/zoo.py --full --family deit_base swin_tiny      the real architectures, one export each
    python tools/zoo.py --small --models /tmp/zoo --failed       reuse exports; only rows that were not proven last time

Half of qk, vo and hidden goes. A row that fails holds its reason in one line and is tried once more before that. Rows
of earlier runs are kept in --records, one file a size, and the page is written from all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from zoo_exports import (
    TOLERANCE, VARIANTS, Axes, dynamic_axes, error, export_fx, first_line, flat, make_variant, outputs_of, quiet, run_onnx,
)  # fmt: skip
from zoo_models import FAMILIES, Family

import toastc

RATIOS = {"attention": {"qk": 0.5, "vo": 0.5}, "ffn": 0.5, "round_to": 4}
TYPICAL = "dynamo20-dyn"  # the variant a family's numbers are taken from, and the only one of the full size
FULL = """deit_tiny deit_small deit_base vit_base vit_base_avg vit_large vit_huge swin_tiny swin_small swin_base deit3_small
dinov2 reg4_dinov2 beit_base eva02_tiny siglip_base vit_relpos_small tv_vit tv_swin hf_vit_sdpa hf_clip hf_bert""".split()
TEMP = Path(tempfile.gettempdir())
BLAMED = {"exporter": "the exporter", "failed": "toastc"}
INTRO = """# The zoo

Every model family that toastc should understand, through every exporter people use, cut by half in qk, vo and FFN
(`round_to` 4) and proven: the smaller weights, zero-filled, are put back into the original graph, and both must give
the same outputs. Weights are random. The page is written by `python tools/zoo.py --small --full`.

**{proven} of {total} proven**, worst error {worst:.1e} (allowed: 1e-04, relative to the largest output). {refused} rightly
refused (there is nothing in them that may be cut), {exporter} where the exporter or ONNX Runtime fails without
toastc, {failed} where toastc fails. {small} rows are small models ({families} families, {variants} variants), {full} are real architectures."""
FULL_NOTE = """Exported with `torch.onnx.export` (opset 20, dynamic batch). MACs are those of one sample. Seconds are the
whole of `toastc.prune` on two cores, most of it the proof: two runs of the original and two of the result."""


@dataclass
class Row:
    """One model. `status` is proven, refused (rightly: it has nothing to cut), exporter or failed (toastc did)."""

    family: str
    variant: str
    status: str = "failed"
    reason: str = ""
    sites: tuple[int, int] | None = None  # attentions, FFNs; None where the route gives no report (torch.compile)
    params: tuple[int, int] = (0, 0)
    macs: tuple[int, int] = (0, 0)
    error: float = 0.0
    seconds: float = 0.0  # the whole of toastc
    proof: float = 0.0  # the part of it that is verification
    rejects: list[str] = field(default_factory=list)

    def fill(self, report: Any) -> None:
        """Take over what toastc reports."""
        ffn = {c.site for c in report.couplings if c.coupling == "hidden"}
        self.sites = len({c.site for c in report.couplings} - ffn), len(ffn)
        self.params = report.before.params, report.after.params
        self.macs = report.before.macs, report.after.macs
        self.error, self.proof = report.verified["error"], report.seconds["verify"]
        self.rejects = [short(r.node, r.reason) for r in report.rejects]


def short(node: str, reason: str) -> str:
    """A reject without the names of nodes: `vo: LayerNormalization mixes its channels`."""
    part = re.search(r"\.(qk|vo|heads|hidden|mlp)$", node)
    what = part[1] if part else (re.search(r"\((\w+)\)$", node) or ["", node])[1]
    return f"{what}: " + re.sub(r"[^ ]+ \((\w+)\)", r"\1", reason)


class Models:
    """One family: its torch model and inputs, its exports, and what toastc makes of the module."""

    def __init__(self, family: Family, full: bool, folder: Path) -> None:
        self.family, self.full, self.folder = family, full, folder
        self.references: dict[bool, Any] = {}
        with quiet():
            self.model: nn.Module = family.full() if full else family.small()

    def inputs(self, dynamic: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], Axes | None]:
        """What is exported with and what is run with; where sizes are dynamic these differ."""
        torch.manual_seed(0)
        sample = self.family.inputs(self.full, 2 if dynamic else 1)
        if not dynamic:
            return sample, sample, None
        test, axes = self.family.inputs(self.full, 3), dynamic_axes(self.family, sample)
        for name, known in axes.items():
            for axis in (axis for axis, label in known.items() if label != "batch"):
                test[name] = test[name].narrow(axis, 1, test[name].shape[axis] - 1)
        return sample, test, axes

    def exported(self, variant: str) -> tuple[Path, float]:
        """The ONNX file, made where it is missing, and how far it is from the torch model."""
        path = self.folder / f"{self.family.name}.{variant}.onnx"
        if not path.exists():
            return path, make_variant(self.family, self.model, variant, self.folder, self.full)
        test = self.inputs(variant.endswith("-dyn"))[1]
        return path, error(run_onnx(path, test), outputs_of(self.model, test))

    def reference(self, dynamic: bool) -> Any:
        """The module, pruned; through the dynamic ExportedProgram where sizes are dynamic."""
        if dynamic not in self.references:
            sample, _, axes = self.inputs(dynamic)
            model: Any = export_fx(self.model, sample, axes) if dynamic else self.model
            with quiet():
                self.references[dynamic] = toastc.prune(model, RATIOS, example_inputs=tuple(sample.values()))
        return self.references[dynamic]

    def compiled(self, dynamic: bool) -> Callable[..., Any]:
        """The module behind toastc's backend, after its first call."""
        sample, _, axes = self.inputs(dynamic)
        torch._dynamo.reset()
        with quiet():
            for name, known in (axes or {}).items():
                for axis in known:
                    torch._dynamo.mark_dynamic(sample[name], axis)
            options: dict[str, Any] = {"ratios": RATIOS, "then": "eager"}
            run = torch.compile(self.model, backend=toastc.backend, options=options, dynamic=None if dynamic else False)
            run(*sample.values())
        return run

    def prune(self, variant: str, row: Row, path: Path | None) -> None:
        """Let toastc do its work and fill the row; raises what toastc raises."""
        dynamic, began = variant.endswith("-dyn"), time.perf_counter()
        if path is not None:
            with quiet(), tempfile.TemporaryDirectory(prefix="toastc-zoo-") as folder:
                row.fill(toastc.prune(path, RATIOS, output=Path(folder) / "small.onnx").report)
        elif variant.startswith("export"):
            self.references.pop(dynamic, None)
            row.fill(self.reference(dynamic).report)
        else:
            small, test = self.reference(dynamic).model, self.inputs(dynamic)[1]
            began = time.perf_counter()
            run = self.compiled(dynamic)
            row.seconds = time.perf_counter() - began
            with quiet():
                row.error = error(flat(run(*test.values())), flat(small(*test.values())))
            if not row.error <= TOLERANCE:
                raise ValueError(f"torch.compile differs from the pruned module by {row.error:.1e}")
        row.seconds = row.seconds or time.perf_counter() - began

    def row(self, variant: str) -> Row:
        """Export, prune, prove. Whatever is raised becomes the row's reason."""
        row, path = Row(self.family.name, variant), None
        if not variant.startswith(("export", "compile")):
            try:
                path, wrong = self.exported(variant)
                if not wrong <= TOLERANCE:
                    raise ValueError(f"the export differs from the torch model by {wrong:.1e}")
            except Exception as problem:  # noqa: BLE001 - exporters raise anything
                row.status, row.reason = "exporter", first_line(problem)
                return row
        for _ in range(2):
            try:
                self.prune(variant, row, path)
                row.status, row.reason = "proven", ""
                return row
            except Exception as problem:  # noqa: BLE001 - a finding, whatever it is
                row.reason = first_line(problem)
        if row.reason.startswith("NothingToPrune") and {"qk", "vo", "hidden"} <= self.family.unprunable.keys():
            row.status = "refused"
        elif path is None:
            try:
                make_variant(self.family, self.model, variant, self.folder, self.full)  # toastc has no part in this
            except Exception as problem:  # noqa: BLE001 - exporters raise anything
                row.status, row.reason = "exporter", first_line(problem)
        return row


def measure(cells: Sequence[tuple[str, str]], full: bool, models: Path | None, rows: dict[str, Row], file: Path) -> None:
    """Fill `rows`, and write them to `file` after every family."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with progress(len(cells)) as tell:
        for name in dict.fromkeys(name for name, _ in cells):
            with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
                made = Models(FAMILIES[name], full, models or Path(scratch))
                for variant in (v for n, v in cells if n == name):
                    row = rows[f"{name}.{variant}"] = made.row(variant)
                    tell(f"{name}.{variant} {row.seconds:.1f} s {row.status} {row.error:.1e} {row.reason}")
            file.write_text(json.dumps([asdict(r) for r in rows.values()], indent=1))


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, elsewhere a line a row; on a descriptor of its own, which `quiet` does not close."""
    with os.fdopen(os.dup(2), "w") as sink:
        if not sink.isatty():
            yield lambda text: print(text, file=sink, flush=True)
            return
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=Console(file=sink)) as bar:
            task = bar.add_task("", total=total)
            yield lambda text: bar.update(task, advance=1, description=text)


def number(value: int) -> str:
    """Three digits and K, M or G."""
    scale, unit = next(((s, u) for s, u in ((1e9, " G"), (1e6, " M"), (1e3, " K")) if value >= s), (1, ""))
    return f"{value / scale:#.3g}".rstrip(".") + unit


def size(row: Row) -> list[str]:
    return [f"{number(a)} → {number(b)}" if a else "" for a, b in (row.params, row.macs)]


def table(head: str, lines: Sequence[Sequence[object]]) -> str:
    """A markdown table; a column whose name ends in a colon holds numbers."""
    columns = head.split(" | ")
    rule = ["---:" if c.endswith(":") else "---" for c in columns]
    every = [[c.rstrip(":") for c in columns], rule, *([str(c).replace("|", "\\|") for c in line] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


def family_line(name: str, rows: Sequence[Row]) -> list[object]:
    """One family over all its variants; sizes and rejects are those of the typical one."""
    proven = [r for r in rows if r.status == "proven"]
    seen = sorted({f"{r.sites[0]} + {r.sites[1]}" for r in proven if r.sites})
    main = next((r for r in proven if r.variant == TYPICAL), (proven or rows)[0])
    why = "; ".join(f"{main.rejects.count(r)} × {r}" for r in dict.fromkeys(main.rejects)) or (rows[0].reason if not proven else "")
    worst = f"{max(r.error for r in proven):.0e}" if proven else ""
    return [name, " or ".join(seen), *size(main), worst, f"{len(proven)}/{len(rows)}", why]


def page(small: Sequence[Row], full: Sequence[Row]) -> str:
    """The page: what this is, totals, families, failures, real architectures."""
    every = [*small, *full]
    count = {s: sum(r.status == s for r in every) for s in ("proven", "refused", "exporter", "failed")}
    families = {r.family: [x for x in small if x.family == r.family] for r in small}
    bad = [(r.family, r.variant, BLAMED[r.status], r.reason) for r in every if r.status in BLAMED]
    whole = [(r.family, f"{r.sites[0]} + {r.sites[1]}", *size(r), f"{r.error:.0e}", f"{r.seconds:.1f}", f"{r.proof:.1f}",
              "; ".join(dict.fromkeys(r.rejects))) for r in full if r.status == "proven" and r.sites]  # fmt: skip
    parts = [INTRO.format(
        total=len(every), **count, worst=max((r.error for r in every if r.status == "proven"), default=0.0),
        small=len(small), families=len(families), variants=len({r.variant for r in small}), full=len(full))]  # fmt: skip
    if small:
        parts += ["## Families, small models", table("family | sites | parameters | MACs | worst error: | proven: | not cut", [family_line(n, r) for n, r in families.items()])]
    parts += ["## What failed", table("family | variant | whose failure | reason", bad) if bad else "Nothing."]
    if full:
        parts += ["## Real architectures", FULL_NOTE, table("architecture | sites | parameters | MACs | error: | seconds: | of these proof: | not cut", whole)]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="two-block models (the default)")
    parser.add_argument("--full", action="store_true", help="real architectures")
    parser.add_argument("--family", nargs="+", choices=list(FAMILIES), metavar="NAME")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, metavar="NAME")
    parser.add_argument("--failed", action="store_true", help="only rows that were not proven last time")
    parser.add_argument("--models", type=Path, help="folder of ONNX exports: used if there, kept if made")
    parser.add_argument("--records", type=Path, default=TEMP / "zoo-records", help="folder of the rows of all runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "zoo.md")
    args, order = parser.parse_args(), list(FAMILIES)
    torch.set_num_threads(1)
    known: dict[bool, list[Row]] = {}
    for full in (False, True):
        file = args.records / f"{'full' if full else 'small'}.json"
        rows = {f"{r['family']}.{r['variant']}": Row(**r) for r in (json.loads(file.read_text()) if file.exists() else [])}
        cells = [(n, v) for n in args.family or (FULL if full else order) for v in args.variant or ([TYPICAL] if full else VARIANTS)]
        if args.failed:
            cells = [(n, v) for n, v in cells if (r := rows.get(f"{n}.{v}")) is None or r.status in BLAMED]
        if args.full if full else args.small or not args.full:
            measure(cells, full, args.models, rows, file)
        known[full] = sorted(rows.values(), key=lambda r: (order.index(r.family), VARIANTS.index(r.variant)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page(known[False], known[True]))
    return int(any(r.status == "failed" for rows in known.values() for r in rows))


if __name__ == "__main__":
    sys.exit(main())
