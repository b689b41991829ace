"""What `make demo` runs: prune the digits ViT from the command line, then show dense and pruned side by side.

It exports the project's own model to ONNX, runs the toastc commands a user would type (prune, inspect, verify,
bench) with their output on the screen, and ends with one table: file size, parameters, MACs, accuracy on the 500
test digits, latency, verification error. Nothing is retrained, nothing outside the repository is read.

    python tools/demo.py [--out build/demo] [--ratios tools/assets/demo_ratios.json]

The exit code is 0 only if every step succeeded and the pruned file was verified.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import digits
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RATIOS = ROOT / "tools" / "assets" / "demo_ratios.json"
BATCHES = "1,64"

console = Console(highlight=False)


class StepFailed(Exception):
    """A step of the demo did not succeed; the message says which and how."""


@dataclass(frozen=True)
class Reports:
    """The JSON that toastc printed for the three commands the table is made from."""

    prune: dict[str, Any]
    verify: dict[str, Any]
    bench: dict[str, Any]


def shown(argument: str | Path) -> str:
    """An argument as one would type it from the repository root."""
    if isinstance(argument, Path) and argument.is_relative_to(ROOT):
        return str(argument.relative_to(ROOT))
    return str(argument)


def show_command(line: str) -> None:
    """Print a command line the way a terminal would show it."""
    console.print(f"\n$ {line}", style="bold green", markup=False, soft_wrap=True)


def toastc(*arguments: str | Path) -> str | None:
    """Run one toastc command from the repository root, output on the screen; with --json, also return its stdout."""
    typed = [shown(argument) for argument in arguments]
    capture = "--json" in typed
    show_command(f"toastc {shlex.join(typed)}")
    done = subprocess.run(
        [sys.executable, "-m", "toastc", *typed],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if capture:
        console.print(f"({len(done.stdout.splitlines())} lines of JSON)", style="dim", markup=False)
    if done.returncode != 0:
        raise StepFailed(f"toastc {typed[0]} exited with code {done.returncode}")
    return done.stdout


def toastc_json(*arguments: str | Path, save: Path) -> dict[str, Any]:
    """Run one toastc command with --json, keep its report as a file, and return it."""
    text = toastc(*arguments, "--json") or ""
    try:
        report = json.loads(text)
    except json.JSONDecodeError as error:
        raise StepFailed(f"toastc {shown(arguments[0])} --json did not print JSON: {error}") from error
    if not isinstance(report, dict):
        raise StepFailed(f"toastc {shown(arguments[0])} --json printed {type(report).__name__}, not an object")
    save.write_text(text)
    return report


def run_toastc(model: Path, pruned: Path, ratios: Path) -> Reports:
    """Type the four commands, then ask prune and verify once more for numbers (`--json`) to put in the table."""
    out = pruned.parent
    pruned.unlink(missing_ok=True)
    toastc(model, "-o", pruned, "--ratios", ratios)
    toastc("inspect", pruned)
    toastc("verify", model, pruned)
    bench = toastc_json("bench", model, pruned, "--batch", BATCHES, save=out / "bench.json")

    console.print("\nThe same prune and verify again, as JSON, for the table:")
    again = out / "pruned_again.onnx"
    again.unlink(missing_ok=True)
    prune = toastc_json(model, "-o", again, "--ratios", ratios, save=out / "prune.json")
    verify = toastc_json("verify", model, pruned, save=out / "verify.json")
    if again.stat().st_size != pruned.stat().st_size:
        raise StepFailed("the same prune gave two files of different size")
    again.unlink()
    return Reports(prune, verify, bench)


def latency(timing: dict[str, float]) -> str:
    """Median and, in brackets, interquartile range of one benchmark cell."""
    return f"{timing['median_ms']:.3f} ({timing['iqr_ms']:.3f})"


def build_table(model: Path, pruned: Path, reports: Reports) -> Table:
    """Dense and pruned side by side, with what changed."""
    table = Table(title="digits ViT, pruned without retraining")
    for heading in ("", "dense", "pruned", "change"):
        table.add_column(heading, justify="right" if heading else "left")

    before, after = reports.prune["before"], reports.prune["after"]
    counts = [
        ("file size, bytes", model.stat().st_size, pruned.stat().st_size),
        ("parameters", before["params"], after["params"]),
        ("MACs, batch 1", before["macs"], after["macs"]),
    ]
    for label, dense, small in counts:
        table.add_row(label, f"{dense:,}", f"{small:,}", f"{small / dense - 1:+.1%}")

    scores = [digits.accuracy_onnx(path) for path in (model, pruned)]
    points = 100 * (scores[1] - scores[0])
    table.add_row("accuracy, 500 test digits", f"{scores[0]:.1%}", f"{scores[1]:.1%}", f"{points:+.1f} points")

    for row in reports.bench["rows"]:
        label = f"median ms (IQR), batch {row['batch']}, {row['provider']}"
        table.add_row(label, latency(row["dense"]), latency(row["pruned"]), f"{row['speedup']:.2f}x")

    table.add_row("verification error", "", f"{reports.verify['error']:.2e}", "")
    return table


def require_verified(reports: Reports) -> None:
    """Fail unless both prune's own check and the separate verify said ok."""
    for name, verdict in (("prune", reports.prune["verified"]), ("verify", reports.verify)):
        if verdict["ok"] is not True:
            raise StepFailed(f"toastc {name} reports a verification failure: error {verdict['error']}")


def run(out: Path, ratios: Path) -> None:
    """The whole demo; raises StepFailed if any part of it fails."""
    out.mkdir(parents=True, exist_ok=True)
    model, pruned = out / "model.onnx", out / "pruned.onnx"
    show_command(f"python tools/digits.py export {shlex.quote(shown(model))}")
    digits.export(model)
    reports = run_toastc(model, pruned, ratios)
    try:
        table = build_table(model, pruned, reports)
        require_verified(reports)
    except (KeyError, TypeError) as error:
        raise StepFailed(f"a toastc report lacks or misplaces {error}") from error
    console.print()
    console.print(table)
    console.print(f"files and JSON reports are in {shown(out)}", markup=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run the demo, and turn a failed step into exit code 1."""
    parser = argparse.ArgumentParser(description="Prune the digits ViT and show dense and pruned side by side.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "demo", help="folder for everything written")
    parser.add_argument("--ratios", type=Path, default=RATIOS, help="ratio file: fractions removed")
    args = parser.parse_args(argv)
    try:
        run(args.out.resolve(), args.ratios.resolve())
    except StepFailed as failure:
        console.print(f"\ndemo failed: {failure}", style="bold red", markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
