"""Merged tokens alone: what they cost in accuracy, and what they save in time. Nothing is trained.

    python tools/bench_tokens.py cifar --weights vits14_cifar10_fp16.safetensors --cifar FOLDER [--tokens h4,v8 --tokens t:2 ...]
    python tools/bench_tokens.py speed [--model deit_small_patch16_224] [--batch 8] [--tokens h4,v8 ...]

cifar   accuracy of a timm ViT-S/14 on CIFAR-10 with the paired standard error of its difference to the dense model
        (tools/bench_accuracy.py says where weights and images come from)
saliency  the map of a ViT-S/14 with an upsampling head (--model, --photos): its error relative to the dense model's map
speed   ONNX Runtime on the CPU, dense and merged taking turns (random weights), and the share of the dense model's time that the
        inserted operators take by ONNX Runtime's own profile

Every row is written as soon as it is there; rows that the JSON has already, of other merges, stay.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_accuracy
import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table

import toastc
from toastc.plans.merges import parse_merges

CIFAR = ("unread", "h4", "v4", "h6", "v6", "h9", "h4:1", "h4:2", "h4,v8", "h4,v8 rule=weighted", "h4,v8 proportional=false",
         "h6,v9", "h3,v6", "t:1", "t:2", "t:3")  # fmt: skip
Rows = Iterator[dict[str, Any]]  # what all have in common, then a row for each
SALIENCY = ("h2", "h4", "h6", "h9", "h4,v8", "h6,v9", "h4,v8 rule=weighted", "h4,v8 proportional=false", "h4:2", "h4:4")
SPEED = ("h4,v8", "h4,v8,unread", "h6,v9", "t:13")


def merges_of(words: str) -> list[dict[str, Any]]:
    """`h4,v8 rule=weighted`: all merges with another option."""
    short, *options = words.split()
    made = [merge.to_dict() for merge in parse_merges(short)]
    for option in options:
        key, _, value = option.partition("=")
        made = [m | {key: {"true": True, "false": False}.get(value, value)} for m in made]
    return made


def accuracy(args: argparse.Namespace, folder: Path) -> Rows:
    args.calibration = 1
    task = bench_accuracy.TASKS[args.task](args, folder)
    dense, macs = bench_accuracy.outputs(task.model, task.test), toastc.inspect(task.model)["macs"]
    known = {} if task.labels is None else {"dense": float((dense.argmax(1) == task.labels).mean())}
    yield {"about": f"{task.name}, {len(task.test)} test images", **known}
    for words in args.tokens or (CIFAR if args.task == "cifar" else SALIENCY):
        report = toastc.prune(task.model, {"tokens": merges_of(words)}, output=folder / "small.onnx").report
        found = bench_accuracy.row(dense, bench_accuracy.outputs(folder / "small.onnx", task.test), task.labels)
        yield {"tokens": words, "macs": report.after.macs / macs, **found}


def speed(args: argparse.Namespace, folder: Path) -> Rows:
    import timm
    import torch

    model = timm.create_model(args.model).eval()
    size = model.default_cfg["input_size"]
    torch.onnx.export(
        model, (torch.zeros(2, *size),), folder / "dense.onnx", dynamo=True, opset_version=20, verbose=False,
        input_names=["image"], dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
    )  # fmt: skip
    yield {"about": f"{args.model}, batch {args.batch}, ONNX Runtime {onnxruntime.__version__}, CPU"}
    for words in args.tokens or SPEED:
        small = folder / "small.onnx"
        report = toastc.prune(folder / "dense.onnx", {"tokens": merges_of(words)}, output=small).report
        timed = toastc.bench(folder / "dense.onnx", small, batches=(args.batch,), seconds=args.seconds)["rows"][0]
        share = inserted_ms(folder / "dense.onnx", small, np.zeros((args.batch, *size), np.float32)) / timed["dense"]["median_ms"]
        macs = report.after.macs / report.before.macs
        yield {"tokens": words, "macs": macs, "ideal": 1 / macs, **timed, "merging": share}


def inserted_ms(dense: Path, small: Path, images: np.ndarray, runs: int = 10) -> float:
    """The time of nodes that the dense file does not have, in one run."""
    names = [{node.name for node in onnx.load(path, load_external_data=False).graph.node} for path in (small, dense)]
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(small.with_suffix(""))
    session = onnxruntime.InferenceSession(str(small), options)
    for _ in range(runs):
        session.run(None, {"image": images})
    events = json.loads(Path(session.end_profiling()).read_text())
    own = {f"{name}_kernel_time" for name in names[0] - names[1]}
    return sum(float(e["dur"]) for e in events if e["name"] in own) / runs / 1000


def of_accuracy(r: dict[str, Any]) -> dict[str, str]:
    score = f"{100 * r['accuracy']:.2f} ({100 * r['difference']:+.2f} +- {100 * r['paired_se']:.2f})"
    return {"accuracy": score, "output error": f"{r['output_error']:.3f}"}


def of_map(r: dict[str, Any]) -> dict[str, str]:
    return {"error of the map": f"{r['output_error']:.3f}", "mean difference, of 1": f"{r['mean_absolute']:.3f}"}


def of_speed(r: dict[str, Any]) -> dict[str, str]:
    return {"ideal": f"{r['ideal']:.2f}", "measured": f"{r['speedup']:.2f}", "merging": f"{100 * r['merging']:.1f} %"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("cifar", "saliency", "speed"))
    parser.add_argument("--tokens", action="append", metavar="h4,v8", help="may be given several times")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--model", default="deit_small_patch16_224", help="speed: a timm model; saliency: the ONNX file")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--out", type=Path, help="default: benchmarks/tokens-TASK.json")
    args = parser.parse_args()
    for name in {"cifar": ("weights", "cifar"), "saliency": ("photos", "model"), "speed": ()}[args.task]:
        path = getattr(args, name)
        if path is None or not Path(path).exists():
            print(f"--{name} {path or 'is missing'}: not here; see tools/bench_accuracy.py --help", file=sys.stderr)
            return 2
    out = args.out or Path(__file__).parents[1] / "benchmarks" / f"tokens-{args.task}.json"
    rows: dict[str, dict[str, Any]] = {r["tokens"]: r for r in json.loads(out.read_text())["rows"]} if out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        found = (speed if args.task == "speed" else accuracy)(args, Path(folder))
        about = next(found) | {"on": platform.platform()}
        for row in found:
            print(row, file=sys.stderr, flush=True)
            rows[row["tokens"]] = row
            out.write_text(json.dumps(about | {"rows": list(rows.values())}, indent=1) + "\n")
    show = {"cifar": of_accuracy, "saliency": of_map, "speed": of_speed}[args.task]
    table = Table(title=about["about"])
    for heading in ("tokens", "MACs", *show(next(iter(rows.values())))):
        table.add_column(heading)
    for r in rows.values():
        table.add_row(r["tokens"], f"{r['macs']:.3f}", *show(r).values())
    Console(width=120, highlight=False).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
