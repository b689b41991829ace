"""ToaSt's published operating points as ratio files, and what they cost.

    python tools/toast_schedule.py deit_small_patch16_224 2.7 > r.json     a ratio file for `toastc --ratios r.json`
    python tools/toast_schedule.py --list                                  models and points, with what the paper reports
    python tools/toast_schedule.py --table [--models deit_tiny_patch16_224,...]
    python tools/toast_schedule.py --prove [--models ...]                  the toast recipe on all of them
    python tools/toast_schedule.py --speed deit_small_patch16_224 2.7      measured here, beside the paper's H100 figure

`--table` builds every model in timm with random weights, finds its sites and counts. "chosen at run time" is the paper's
form, in which fc1 and fc2 read fewer channels and no FFN weight goes; "static" is what toastc cuts with the same numbers:
a channel that fc2 does not read is not computed by fc1 either. `--prove` runs the static recipe on every model, at its smallest
point, and compares what comes out with the padded weights in the dense model. `--speed` compiles the model (random weights,
speed does not depend on them) in all three forms and times them in ONNX Runtime on the CPU, taking turns: ratios to
neighbouring runs of the dense model, median and quartiles.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import toastc
from toastc.plans.cost import saved_macs, saved_params
from toastc.plans.plan import Choice, Keep, Plan, Select
from toastc.plans.ratios import narrowed, parse
from toastc.plans.schedules import Schedule, schedule, schedules
from toastc.system.errors import ToastcError
from toastc.timing.files import compared


def build(name: str) -> Any:
    import timm

    return timm.create_model(name.removesuffix(".mae"), num_classes=1000).eval()


def planned(sites: Any, ratios: dict[str, Any], static: bool) -> Plan:
    """A plan of the widths alone: which channels they are does not matter for counting."""
    choices: dict[str, Choice] = {}
    for name, coupling, count in narrowed(parse(ratios), sites):
        kept = Keep(np.tile(np.arange(count), (coupling.groups, 1)))
        of_ffn = coupling.name in ("hidden", "inputs")
        choices[name] = Select(count, coupling.width, "image", np.zeros(1, np.int32)) if of_ffn and not static else kept
    return Plan(choices)


def counted(name: str) -> Iterator[dict[str, Any]]:
    """Every point of a model: what it costs, dense, chosen at run time, and static."""
    from toastc.compiler.sources import open_graph
    from toastc.passes.match import match

    graph = open_graph(build(name))
    sites, (macs, params) = match(graph)[1], graph.totals()
    for point, own in schedules()[name].items():
        row: dict[str, Any] = {"model": name, "point": point, "dense": macs / 1e9, "reported dense": own.dense["gmacs"]}
        for form in ("chosen", "static"):
            plan = planned(sites, own.ratios(), form == "static")
            row[form] = (macs - saved_macs(sites, plan)) / 1e9
            row[f"{form} params"] = (params - saved_params(sites, plan)) / 1e6
        yield row | {"recounted": own.given["gmacs"], "dense params": params / 1e6}


def table(names: list[str], as_json: bool) -> int:
    rows = []
    shown = Table(title="GMACs of one 224 px image")
    for heading in (
        "model",
        "point",
        "dense",
        "recounted",
        "chosen at run time",
        "static",
        "static saves more",
        "Mparams: dense",
        "chosen",
        "static",
    ):
        shown.add_column(heading, justify="left" if heading == "model" else "right")
    for name in names:
        for row in counted(name):
            rows.append(row)
            more = f"{100 * (row['chosen'] - row['static']) / row['dense']:.1f} %"
            params = [f"{row[k]:.1f}" for k in ("dense params", "chosen params", "static params")]
            cells = [f"{row[k]:.3f}" for k in ("dense", "recounted", "chosen", "static")]
            shown.add_row(name, row["point"], *cells, more, *params)
            print(f"{name} {row['point']}", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        Console(width=150, highlight=False).print(shown)
    off = [r for r in rows if f"{r['chosen']:.3g}" != f"{r['recounted']:.3g}"]
    for row in off:
        print(f"{row['model']} {row['point']}: {row['chosen']:.4f}, recounted {row['recounted']}", file=sys.stderr)
    return 1 if off else 0


def prove(names: list[str], as_json: bool) -> int:
    """The static recipe, really run: its GMACs are those of the table, and the proof says how far the outputs are apart."""
    import torch

    rows = []
    for name in names:
        own = list(schedules()[name].values())[-1]
        images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        report = toastc.prune(build(name), own.ratios(), recipe="toast", data=images, example_inputs=(images[:2],)).report
        wanted = next(row["static"] for row in counted(name) if row["point"] == own.point)
        assert report.verified is not None
        same = f"{report.after.macs / 1e9:.3g}" == f"{wanted:.3g}"
        rows.append({"model": name, "point": own.point, "gmacs": report.after.macs / 1e9, "table": wanted, "same": same,
                     "error": report.verified["error"], "tolerance": report.verified["tolerance"],
                     "proven": report.verified["ok"], "seconds": round(sum(report.seconds.values()), 1)})  # fmt: skip
        if not as_json:
            word = "proven" if report.verified["ok"] else "NOT EQUAL"
            print(f"{name} {own.point}: {rows[-1]['gmacs']:.3f} GMACs (table: {wanted:.3f}), {word}, "
                  f"error {rows[-1]['error']:.1e}, {rows[-1]['seconds']} s", flush=True)  # fmt: skip
    if as_json:
        print(json.dumps(rows, indent=1))
    return 0 if all(row["proven"] and row["same"] for row in rows) else 1


def speed(own: Schedule, batch: int, seconds: float) -> dict[str, Any]:
    """Dense, chosen at run time, and static, in turns."""
    import torch

    from toastc.graphs.onnx.session import time_interleaved

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(
                build(own.model), (torch.zeros(2, 3, 224, 224),), folder / "dense.onnx", dynamo=True, opset_version=20,
                verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=True, input_names=["image"],
            )  # fmt: skip
        forms = {"static": "toast", "image": "toast-image", "batch": "toast-batch"}
        made = {}
        for form, recipe in forms.items():
            data = rng.standard_normal((16, 3, 224, 224)).astype(np.float32) if form == "static" else None
            made[form] = toastc.prune(
                folder / "dense.onnx", own.ratios(), recipe=recipe, data=data, output=folder / f"{form}.onnx"
            )
            print(f"{form}: proven, error {made[form].report.verified['error']:.1e}", file=sys.stderr, flush=True)  # type: ignore[index]
        paths = [folder / "dense.onnx", *(folder / f"{form}.onnx" for form in forms)]
        feed = {"image": rng.standard_normal((batch, 3, 224, 224)).astype(np.float32)}
        times = time_interleaved(paths, feed, "cpu", 0, seconds)
    found = {}
    for form, own_times in zip(forms, times[1:], strict=True):
        row, report = compared([times[0], own_times], batch), made[form].report
        found[form] = {"speedup": row["speedup"], "speedup_iqr": row["speedup_iqr"], "runs": row["dense"]["runs"],
                       "ideal": report.before.macs / report.after.macs}  # fmt: skip
    paper = own.given["images_per_s"] / own.dense["images_per_s"]
    return {"model": own.model, "point": own.point, "batch": batch, "paper": paper, "forms": found}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("point", nargs="?")
    parser.add_argument("--list", action="store_true", help="models and points")
    parser.add_argument("--table", action="store_true", help="count every point of every model")
    parser.add_argument("--prove", action="store_true", help="run the recipe on every model")
    parser.add_argument("--models", type=lambda t: t.split(","), help="with --table or --prove: only these")
    parser.add_argument("--speed", action="store_true", help="time a point here")
    parser.add_argument("--batch", type=int, default=8, help="with --speed (default 8)")
    parser.add_argument("--seconds", type=float, default=40.0, help="with --speed: time for all four together (40)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    try:
        if args.table:
            return table(args.models or list(schedules()), args.json)
        if args.prove:
            return prove(args.models or list(schedules()), args.json)
        if args.list:
            for model, points in schedules().items():
                for point, own in points.items():
                    said = own.given
                    gmacs = f"{said['gmacs']} GMACs of {own.dense['gmacs']}"
                    print(f"{model} {point}: {gmacs}, reported top-1 {said['top1']} of {own.dense['top1']}")
            return 0
        if args.model is None or args.point is None:
            parser.error("give a model and a point, --list or --table")
        own = schedule(args.model, args.point)
    except ToastcError as error:
        print(f"toast_schedule: {error}", file=sys.stderr)
        return 2
    if not args.speed:
        print(json.dumps(own.ratios(), indent=1))
        return 0
    found = speed(own, args.batch, args.seconds)
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    print(
        f"{own.model} {own.point}, ONNX Runtime on the CPU, batch {args.batch}; the paper on an H100: {found['paper']:.2f} times"
    )
    for form in ("static", "image", "batch"):
        of = found["forms"][form]
        low, high = of["speedup_iqr"]
        print(f"  {form:7} {of['speedup']:.2f} ({low:.2f}-{high:.2f}) times as fast as dense, by MACs {of['ideal']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
