"""The command: parse, call, print. No logic lives here, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .errors import ToastcError

PRUNE_HELP = """Make a Vision Transformer smaller without retraining.

  toastc MODEL.onnx -o OUT.onnx --ratios r.json     prune by a ratio file and prove the result
  toastc MODEL.onnx -o OUT.onnx --target macs=0.6   keep 60 % of the MACs, evenly
  toastc inspect MODEL.onnx                         what can be shrunk, and why the rest can not
  toastc verify DENSE.onnx PRUNED.onnx              pad the pruned weights back and compare
  toastc bench DENSE.onnx PRUNED.onnx --batch 1,8   time both, taking turns
"""

RATIOS_HELP = """example ratio file (every number is the fraction removed):
  {"attention": {"qk": 0.5, "vo": 0.5, "heads": 0.0}, "ffn": 0.5, "sites": {"blocks.0.*": 0}, "round_to": 8}

exit: 0 done and verified; 1 verification failed, or nothing could be pruned; 2 bad usage or bad input
"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"toastc: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def parser_for(command: str) -> Parser:
    raw = argparse.RawDescriptionHelpFormatter
    if command == "prune":
        p = Parser("toastc", description=PRUNE_HELP, epilog=RATIOS_HELP, formatter_class=raw)
        p.add_argument("--version", action="version", version=f"toastc {__version__}")
        p.add_argument("model", type=Path, metavar="MODEL.onnx")
        p.add_argument("-o", "--output", type=Path, metavar="OUT.onnx", help="where to write the smaller model")
        what = p.add_mutually_exclusive_group(required=True)
        what.add_argument("--ratios", type=Path, metavar="R.json", help="how much of every coupling to remove")
        what.add_argument("--target", metavar="macs=0.6", help="share of the MACs to keep, spread evenly")
        what.add_argument("--plan", type=Path, metavar="P.safetensors", help="replay a plan written by --plan-out")
        p.add_argument("--recipe", default="default", metavar="NAME", help="default, magnitude, magnitude-l1, geometric-median")
        p.add_argument("--passes", metavar="P,Q", help='spell the recipe: "score-weights{by=geometric-median},plan-ratios"')
        p.add_argument("--plan-out", type=Path, metavar="P.safetensors", help="also save the plan")
        p.add_argument("--report", type=Path, metavar="OUT.html", help="also save the report as a page")
        p.add_argument("--dry-run", action="store_true", help="plan and report, write nothing")
        p.add_argument("--no-verify", action="store_true", help="skip the proof")
    elif command == "inspect":
        p = Parser(
            "toastc inspect",
            description="Show every attention and FFN, and what can be cut.",
            formatter_class=raw,
            epilog="example: toastc inspect model.onnx --json",
        )
        p.add_argument("model", type=Path, metavar="MODEL.onnx")
    elif command == "verify":
        p = Parser(
            "toastc verify",
            description="Zero-fill the pruned weights to their original shapes, run them in the dense graph, compare.",
            formatter_class=raw,
            epilog="example: toastc verify dense.onnx pruned.onnx",
        )
        p.add_argument("dense", type=Path, metavar="DENSE.onnx")
        p.add_argument("pruned", type=Path, metavar="PRUNED.onnx")
    else:
        p = Parser(
            "toastc bench",
            description="Time two models on ONNX Runtime, taking turns.",
            formatter_class=raw,
            epilog="example: toastc bench dense.onnx pruned.onnx --batch 1,8,64",
        )
        p.add_argument("dense", type=Path, metavar="DENSE.onnx")
        p.add_argument("pruned", type=Path, metavar="PRUNED.onnx")
        p.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
        p.add_argument("--batch", type=batch_sizes, default=(1, 8), metavar="1,8,64")
        p.add_argument("--threads", type=int, default=0, help="0: as many as ONNX Runtime likes")
        p.add_argument("--seconds", type=float, default=3.0, help="time spent on each batch size")
    if command in ("prune", "verify"):
        p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    p.add_argument("--quiet", action="store_true", help="no progress, no tables")
    return p


def batch_sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) for part in text.split(","))
    if not sizes or min(sizes) < 1:
        raise ValueError(text)
    return sizes


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status; every foreseen error is one line on stderr."""
    given = list(sys.argv[1:] if argv is None else argv)
    command = given.pop(0) if given and given[0] in COMMANDS else "prune"
    args = parser_for(command).parse_args(given)
    try:
        from .files import stop_cleanly

        with stop_cleanly():
            return COMMANDS[command](args)
    except ToastcError as error:
        print(f"toastc: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("toastc: interrupted; nothing was written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (MemoryError, RuntimeError, OSError) as error:
        if os.environ.get("TOASTC_DEBUG"):
            raise
        text = " ".join(str(error).split())[:300]
        print(f"toastc: {type(error).__name__}: {text} (TOASTC_DEBUG=1 shows where)", file=sys.stderr)
        return 2


def show(data: dict[str, Any], as_json: bool, quiet: bool, table: Callable[[Any], None]) -> None:
    if as_json:
        print(json.dumps(data, indent=1))
    elif not quiet:
        from rich.console import Console

        table(Console())


def run_prune(args: argparse.Namespace) -> int:
    from .api import prune
    from .progress import progress

    if args.output is None and not args.dry_run:
        raise ToastcError("give -o OUT.onnx, or --dry-run")
    with progress(8, args.quiet) as tell:
        result = prune(
            args.model, args.ratios, target=args.target, plan=args.plan, recipe=args.recipe, passes=args.passes,
            output=args.output, seed=args.seed, verify=not args.no_verify, dry_run=args.dry_run, tell=tell,
        )  # fmt: skip
    if args.plan_out is not None:
        result.plan.save(args.plan_out)
    if args.report is not None:
        from .report.page import write_page

        write_page(result.report, args.report)
    from .report.terminal import print_report

    show(result.report.to_dict(), args.json, args.quiet, lambda console: print_report(result.report, console))
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    from .api import inspect
    from .report.terminal import print_sites

    data = inspect(args.model)
    show(data, args.json, args.quiet, lambda console: print_sites(data, console))
    return 0


def run_verify(args: argparse.Namespace) -> int:
    from .api import verify
    from .progress import progress

    with progress(1, args.quiet) as tell:
        tell("verify")
        data = verify(args.dense, args.pruned, seed=args.seed)
    word = f"verified: error {data['error']:.1e} of the output scale (allowed {data['tolerance']:.0e})"
    show(data, args.json, args.quiet, lambda console: console.print(word if data["ok"] else "NOT EQUAL", highlight=False))
    if not data["ok"]:
        raise VerificationError(f"{args.pruned}: {data['reason']}")
    return 0


class VerificationError(ToastcError):
    status = 1


def run_bench(args: argparse.Namespace) -> int:
    from .api import bench
    from .progress import progress
    from .report.terminal import print_bench

    with progress(len(args.batch), args.quiet) as tell:
        data = bench(
            args.dense,
            args.pruned,
            provider=args.provider,
            batches=args.batch,
            threads=args.threads,
            seconds=args.seconds,
            tell=tell,
        )
    show(data, args.json, args.quiet, lambda console: print_bench(data, console))
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "prune": run_prune, "inspect": run_inspect, "verify": run_verify, "bench": run_bench,
}  # fmt: skip
