"""What each command does: call, and print. No logic lives here."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

from rich.console import Console

from .. import api
from ..calibration import Preprocess, Workers
from ..compiler.options import COMMAND, words
from ..compiler.sources import is_named
from ..plans.targets import Deploy
from ..report.data import finite
from ..report.page import write_page
from ..report.pareto import compared, write_comparison
from ..report.reading import as_written, read_from, read_json, read_report
from ..system.errors import ToastcError
from ..system.files import check_targets
from ..system.memory import one_heap
from ..system.progress import progress
from ..system.vocabulary import Json
from .terminal import print_bench, print_kernels, print_report, print_sites


def show(data: Json, as_json: bool, quiet: bool, table: Callable[[Any], None]) -> None:
    if as_json:
        print(json.dumps(finite(data), indent=1, allow_nan=False))
    elif not quiet:
        table(Console())


def preprocess_of(args: argparse.Namespace) -> Any:
    given = {k: getattr(args, k) for k in ("size", "crop", "mean", "std") if getattr(args, k) is not None}
    return Preprocess(**given) if given else None  # the model's own, if it has some


def prune(args: argparse.Namespace) -> int:
    said = {name: getattr(args, name) for name, _, _ in words(COMMAND)}
    if args.output is None and not args.dry_run:
        raise ToastcError("give -o OUT.onnx, or --dry-run")
    asks = any(said[name] is not None for name in ("ratios", "target", "plan", "tokens"))
    if not asks and not Deploy(args.runtime, args.dtype, args.quantize):
        plain = {"output", "weights", "seed", "provider", "images", "batch", "recipe", "verify", "allow"}
        if is_named(args.model) and all(said[n] == default for n, default, _ in words(COMMAND) if n not in plain):
            return export(args)
        raise ToastcError("one of the arguments --ratios --target --plan --tokens is required (see toastc --help)")
    one_heap()
    with Workers.started() as workers, progress(args.quiet or workers.rank > 0) as tell:
        more = {"preprocess": preprocess_of(args), "command": args.asked, "tell": tell, "workers": workers}
        result = api.prune(args.model, **said, **more)
    if workers.rank:
        return 0
    show(result.report.to_dict(), args.json, args.quiet, lambda console: print_report(result.report, console))
    return 0


def export(args: argparse.Namespace) -> int:
    """A model by name, and nothing to be done to it: the dense file."""

    with progress(args.quiet) as tell:
        tell("export")
        data = api.export(str(args.model), args.output, args.weights)
    word = f"{args.output}: {args.model} as it is; --target macs=0.6 or --ratios make it smaller"
    show(data, args.json, args.quiet, lambda console: console.print(word, markup=False, highlight=False))
    return 0


def calibrate(args: argparse.Namespace) -> int:
    first = os.environ.get("RANK", "0") == "0"
    one_heap()
    with progress(args.quiet or not first) as tell:
        moments = api.measure(
            args.model, args.data, images=args.images, preprocess=preprocess_of(args), weights=args.weights,
            provider=args.provider, seed=args.seed, inputs=args.inputs, output=args.output, tell=tell,
        )  # fmt: skip
    if first:
        couplings = sorted({k.rpartition("/")[0] for k in moments})
        inside = len(next(iter(moments.inputs.values()), ()))
        data = {"images": moments.images, "inside": inside, "source": moments.source, "couplings": couplings}
        data["notes"] = list(moments.notes)
        said = (
            f"{args.output}: {moments.images} inputs, {len(couplings)} couplings; the file holds {inside or 'none'} of the inputs"
        )
        word = "\n".join((said, *moments.notes))
        show(data, args.json, args.quiet, lambda console: console.print(word, highlight=False))
    return 0


def inspect(args: argparse.Namespace) -> int:
    data = api.inspect(args.model)
    show(data, args.json, args.quiet, lambda console: print_sites(data, console))
    return 0


def kernels(args: argparse.Namespace) -> int:
    data = api.kernels(args.model)
    show(data, args.json, args.quiet, lambda console: print_kernels(data["kernels"], console, every=True))
    return 0


def verify(args: argparse.Namespace) -> int:
    with progress(args.quiet) as tell:
        tell("verify")
        data = api.verify(args.dense, args.pruned, seed=args.seed)
    word = f"verified: error {data['error']:.1e} of the output scale (allowed {data['tolerance']:.0e})"
    show(data, args.json, args.quiet, lambda console: console.print(word if data["ok"] else "NOT EQUAL", highlight=False))
    if not data["ok"]:
        raise VerificationError(f"{args.pruned}: {data['reason']}")
    return 0


class VerificationError(ToastcError):
    status = 1


def bench(args: argparse.Namespace) -> int:
    with progress(args.quiet) as tell:
        data = api.bench(
            args.dense,
            args.pruned,
            provider=args.provider,
            batches=args.batch,
            threads=args.threads,
            seconds=args.seconds,
            options=dict(args.option or ()),
            memory=not args.no_memory,
            tell=tell,
        )
    show(data, args.json, args.quiet, lambda console: print_bench(data, console))
    return 0


def report(args: argparse.Namespace) -> int:
    check_targets([args.output], [p for p in (*read_from(args.source), args.bench, args.accuracy) if p is not None])
    data = read_report(args.source)
    if args.bench is not None:
        data["bench"] = read_json(args.bench, {"rows", "ideal"}, "toastc bench --json")
    if args.accuracy is not None:
        data["accuracy"] = read_json(args.accuracy, {"models", "images"}, "tools/eval_imagenet.py --json")
    with as_written(args.source, args.bench, args.accuracy):
        write_page(data, args.output)
    show(data, args.json, args.quiet, lambda console: console.print(str(args.output), markup=False, highlight=False))
    return 0


def compare(args: argparse.Namespace) -> int:
    check_targets([args.output], [file for path in args.sources for file in read_from(path)])
    stems = [path.stem for path in args.sources]
    names = stems if len(set(stems)) == len(stems) else [str(path) for path in args.sources]
    with as_written(*args.sources):
        rows = compared([(name, read_report(path)) for name, path in zip(names, args.sources, strict=True)])
        write_comparison(rows, args.output)
    show({"reports": rows}, args.json, args.quiet, lambda console: console.print(str(args.output), markup=False, highlight=False))
    return 0
