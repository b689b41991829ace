"""Every model family, through every exporter people use, cut in half by toastc and proven.

    python tools/zoo.py --small                                  two-block models, all families and variants
    python tools/zoo.py --full --family deit_base swin_tiny      real architectures, one export of each
    python tools/zoo.py --small --models /tmp/zoo --failed       reuse exports; only what was not proven last time

Half of qk, vo and FFN goes (`round_to` 4). Proven means: the smaller weights, zero-filled, go back into the original graph,
and both give the same outputs. Weights are random. Variants are ways to export (`tools/zoo_exports.py`); `export` and
`compile` are torch without ONNX, and `compile` is proven by equality with `toastc.prune(module)`. What fails is tried
once more. Rows of all runs are kept in `benchmarks/zoo`, and this page, `docs/zoo.md`, is written from all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from zoo_exports import TOLERANCE, VARIANTS, Axes, dynamic_axes, error, export_fx, flat, make_variant, outputs_of, quiet, run_onnx
from zoo_models import FAMILIES, Family
from zoo_page import BLAMED, TYPICAL, Row, lines_of, page

import toastc

ROOT = Path(__file__).parents[1]
Named = dict[str, Tensor]
RATIOS = {"attention": {"qk": 0.5, "vo": 0.5}, "ffn": 0.5, "round_to": 4}
FULL = ["deit_tiny", "deit_small", "deit_base", "vit_base", "vit_base_avg", "vit_large", "vit_huge", "swin_tiny", "swin_small",
        "swin_base", "deit3_small", "dinov2", "reg4_dinov2", "beit_base", "eva02_tiny", "siglip_base", "vit_relpos_small",
        "tv_vit", "tv_swin", "hf_vit_sdpa", "hf_clip", "hf_bert"]  # fmt: skip


def short(node: str, reason: str) -> str:
    """A reject without the names of nodes: `vo: LayerNormalization mixes its channels`."""
    part = re.search(r"\.(\w+)$", node)
    what = part[1] if part else (re.search(r"\((\w+)\)$", node) or ["", node])[1]
    return f"{what}: " + re.sub(r"[^ ]+ \((\w+)\)", r"\1", reason)


def one_line(problem: BaseException) -> str:
    """The first line of an exception, no paths; of ONNX Runtime's the part that says something, of Dynamo's what it wraps."""
    text = re.sub(r"\[ONNXRuntimeError\].* running (\w+) node.*bool\) ", r"\1: ", f"{type(problem).__name__}: {problem}")
    return re.sub(r"\A.* raised:\n|\x1b\[[0-9;]*m|/\S+/", "", text).strip().partition("\n")[0][:250]


class Models:
    """One family: its torch model and inputs, its exports, and what toastc makes of the module."""

    def __init__(self, family: Family, full: bool, folder: Path | None) -> None:
        self.scratch = tempfile.TemporaryDirectory(prefix="zoo-")
        self.family, self.full, self.folder = family, full, folder or Path(self.scratch.name)
        with quiet():
            self.model: nn.Module = family.full() if full else family.small()

    def inputs(self, dynamic: bool) -> tuple[Named, Named, Axes | None]:
        """What is exported with and what is run with; where sizes are dynamic these differ."""
        torch.manual_seed(0)
        sample = self.family.inputs(self.full, 2 if dynamic else 1)
        if not dynamic:
            return sample, sample, None
        test, axes = self.family.inputs(self.full, 3), dynamic_axes(self.family, sample)
        for name, axis in ((n, a) for n, known in axes.items() for a, label in known.items() if label != "batch"):
            test[name] = test[name].narrow(axis, 1, test[name].shape[axis] - 1)
        return sample, test, axes

    def prune(self, path: Path, row: Row) -> None:
        """Let toastc do its work and fill the row; raises what toastc raises."""
        sample, test, axes = self.inputs(row.variant.endswith("-dyn"))
        if path.exists():
            small = toastc.prune(path, RATIOS, recipe="magnitude", output=Path(self.scratch.name) / "small.onnx")
        else:
            module: Any = export_fx(self.model, sample, axes) if axes else self.model
            small = toastc.prune(module, RATIOS, recipe="magnitude", example_inputs=tuple(sample.values()))
        if not row.variant.startswith("compile"):
            report, ffn = small.report, {c.site for c in small.report.couplings if c.coupling == "hidden"}
            row.sites = len({c.site for c in report.couplings} - ffn), len(ffn)
            row.params, row.macs = (report.before.params, report.after.params), (report.before.macs, report.after.macs)
            row.error, row.proof, row.seconds = report.verified["error"], report.seconds["verify"], sum(report.seconds.values())
            row.rejects = [short(r.node, r.reason) for r in report.rejects]
            return
        began, options = time.perf_counter(), {"ratios": RATIOS, "recipe": "magnitude", "then": "eager"}
        torch._dynamo.reset()
        for name, known in (axes or {}).items():
            torch._dynamo.mark_dynamic(sample[name], list(known))
        run = torch.compile(self.model, backend=toastc.backend, options=cast(Any, options), dynamic=None if axes else False)
        run(*sample.values())
        row.seconds = time.perf_counter() - began
        row.error = error(flat(run(*test.values())), flat(small.model(*test.values())))
        if not row.error <= TOLERANCE:
            raise ValueError(f"torch.compile differs from the pruned module by {row.error:.1e}")

    def row(self, variant: str) -> Row:
        """Export and compare with the torch model, then prune and prove. Whatever is raised becomes the row's reason."""
        row, path = Row(self.family.name, variant), self.folder / f"{self.family.name}.{variant}.onnx"
        try:
            if path.exists():
                test = self.inputs(variant.endswith("-dyn"))[1]
                wrong = error(run_onnx(path, test), outputs_of(self.model, test))
            else:
                wrong = make_variant(self.family, self.model, variant, self.folder, self.full)
            if not wrong <= TOLERANCE:
                raise ValueError(f"the export differs from the torch model by {wrong:.1e}")
        except Exception as problem:  # noqa: BLE001 - exporters raise anything
            return replace(row, status="exporter", reason=one_line(problem.__cause__ or problem))
        for _ in range(2):
            try:
                with quiet():
                    self.prune(path, row)
                return replace(row, status="proven", reason="")
            except Exception as problem:  # noqa: BLE001 - a finding, whatever it is
                row.reason = one_line(problem)
        if row.reason.startswith("NothingToPrune") and {"qk", "vo", "hidden"} <= self.family.unprunable.keys():
            row.status = "refused"
        return row


def measure(cells: Sequence[tuple[str, str]], full: bool, models: Path | None, rows: dict[str, Row], file: Path) -> None:
    """Fill `rows` and `file`. The progress bar has a descriptor of its own, which `quiet` does not close."""
    made: Models | None = None
    with os.fdopen(os.dup(2), "w") as sink, Progress(console=Console(file=sink)) as bar:
        for name, variant in bar.track(cells):
            if made is None or made.family.name != name:
                made = Models(FAMILIES[name], full, models)
            row = rows[f"{name}.{variant}"] = made.row(variant)
            bar.console.out(f"{name}.{variant} {row.seconds:.1f} s {row.status} {row.error:.1e} {row.reason}", highlight=False)
            file.write_text(lines_of(rows.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", nargs="+", choices=list(FAMILIES), metavar="NAME")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, metavar="NAME")
    for flag, what in ("small", "two-block models (default)"), ("full", "real architectures"), ("failed", "not proven last time"):
        parser.add_argument(f"--{flag}", action="store_true", help=what)
    parser.add_argument("--models", type=Path, help="folder of ONNX exports of that size: used if there, kept if made")
    parser.add_argument("--records", type=Path, default=ROOT / "benchmarks" / "zoo", help="rows of all runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "zoo.md")
    args, order, known = parser.parse_args(), list(FAMILIES), []
    torch.set_num_threads(1)
    for folder in filter(None, (args.records, args.models)):
        folder.mkdir(parents=True, exist_ok=True)
    for full, families, variants in ((False, order, VARIANTS), (True, FULL, [TYPICAL])):
        file = args.records / f"{'full' if full else 'small'}.json"
        rows = {f"{r['family']}.{r['variant']}": Row(**r) for r in (json.loads(file.read_text()) if file.exists() else [])}
        cells = [(n, v) for n in args.family or families for v in args.variant or variants]
        if args.full if full else args.small or not args.full:
            done = [f for f, r in rows.items() if args.failed and r.status not in BLAMED]
            measure([(n, v) for n, v in cells if f"{n}.{v}" not in done], full, args.models, rows, file)
        known.append(sorted(rows.values(), key=lambda r: (order.index(r.family), VARIANTS.index(r.variant))))
    args.out.write_text(page(str(__doc__), *known))
    return int(any(r.status == "failed" for rows in known for r in rows))


if __name__ == "__main__":
    sys.exit(main())
