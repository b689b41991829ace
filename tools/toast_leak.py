"""Does channel selection by batch hand the labels to the network? ToaSt's run-time selection, by the company images keep.

    python tools/toast_leak.py cifar --weights vits14_cifar10_fp16.safetensors --cifar FOLDER [--test 5000] [--out JSON]
    python tools/toast_leak.py digits

ToaSt chooses the FFN channels of a batch together, from its images (`toast-batch`). If the images of a batch are of one
class, as they are where a test set is read in the order of its folders, the choice tells the class. So the same model is
asked about the same images in batches that are sorted by class and in batches that are shuffled, of 16 and of 256; each image
alone (batches of one); and with a choice for every image by itself (`toast-image`), which must give the same as batches of one.
Selected are the hidden channels that fc2 reads, as the paper's schedules do, in the last blocks; nothing else is changed.

Accuracy with the paired standard error of its difference to the dense model; shuffled batches in several orders, with the
spread over them. For `cifar` see tools/bench_accuracy.py; weights and images are not part of this project.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import bench_accuracy
import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

import toastc

SCHEDULES = {"cifar": ("10-11:0.9", "9-11:0.9", "7-11:0.7"), "digits": ("4-5:0.9", "2-5:0.9")}
PASSES = "plan-selections{{per={per},balance={balance},sample={sample}}}"


def ratios_of(schedule: str, blocks: int) -> dict[str, Any]:
    """`10-11:0.9`: nine tenths of what fc2 reads in blocks 10 and 11."""
    span, _, share = schedule.partition(":")
    first, last = (int(x) for x in span.split("-"))
    return {"ffn": {"hidden": [float(share) if first <= i <= last else 0 for i in range(blocks)]}, "round_to": 1}


def answers(path: Path, images: np.ndarray, order: np.ndarray, batch: int) -> np.ndarray:
    """The class given to every image when they come in this order, in batches of this size."""
    session = onnxruntime.InferenceSession(str(path))
    name, found = session.get_inputs()[0].name, np.zeros(len(order), np.int64)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        found[rows] = session.run(None, {name: images[rows]})[0].argmax(1)
    return found


def settings(labels: np.ndarray, batches: list[int], shuffles: int) -> Iterator[tuple[str, int, list[np.ndarray]]]:
    """How images are put together: a word, the size of a batch, and the orders to try."""
    for batch in batches:
        yield "sorted by class", batch, [np.argsort(labels, kind="stable")]
        yield "shuffled", batch, [np.random.default_rng(seed).permutation(len(labels)) for seed in range(shuffles)]


def compared(right: np.ndarray, dense: np.ndarray) -> dict[str, float]:
    apart = right.astype(float) - dense
    se = apart.std(ddof=1) / np.sqrt(len(apart))
    return {"accuracy": float(right.mean()), "difference": float(apart.mean()), "paired_se": float(se)}


def leaks(task: bench_accuracy.Task, schedule: str, args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    assert task.labels is not None
    blocks = sum(site["kind"] == "ffn" for site in toastc.inspect(task.model)["sites"])
    every = np.arange(len(task.labels))
    dense = answers(task.model, task.test, every, 64) == task.labels
    yield {"schedule": "dense", "company": "any", "batch": 64, "runs": [compared(dense, dense)]}
    files = {}
    for per in ("batch", "image"):
        files[per] = folder / f"{per}.onnx"
        passes = PASSES.format(per=per, balance=args.balance, sample=args.sample)
        toastc.prune(task.model, ratios_of(schedule, blocks), passes=passes, output=files[per])
    alone = answers(files["image"], task.test, every, 64)
    yield {"schedule": schedule, "company": "an image by itself", "batch": 1, "runs": [compared(alone == task.labels, dense)]}
    some = every[:: max(1, len(every) // 500)]
    same = answers(files["batch"], task.test[some], np.arange(len(some)), 1) == alone[some]
    yield {"schedule": schedule, "company": "batches of one, same answer", "batch": 1, "share": float(same.mean())}
    for company, batch, orders in settings(task.labels, args.batches, args.shuffles):
        runs = [compared(answers(files["batch"], task.test, order, batch) == task.labels, dense) for order in orders]
        yield {"schedule": schedule, "company": company, "batch": batch, "runs": runs}


def told(row: dict[str, Any]) -> str:
    if "share" in row:
        return f"{100 * row['share']:.1f} %"
    best = [r["accuracy"] for r in row["runs"]]
    middle, apart = np.mean(best), np.mean([r["difference"] for r in row["runs"]])
    spread = f", orders {100 * min(best):.2f} to {100 * max(best):.2f}" if len(best) > 1 else ""
    return f"{100 * middle:.2f} ({100 * apart:+.2f} +- {100 * row['runs'][0]['paired_se']:.2f}{spread})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("cifar", "digits"))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--schedules", type=lambda t: t.split(","), help="BLOCKS:SHARE, say 10-11:0.9,7-11:0.7")
    parser.add_argument("--batches", type=lambda t: [int(x) for x in t.split(",")], default=[16, 256])
    parser.add_argument("--shuffles", type=int, default=3)
    parser.add_argument("--sample", type=float, default=0.02, help="share of the tokens that is looked at in the first block")
    parser.add_argument("--balance", default="code", choices=("paper", "code"))
    parser.add_argument("--out", type=Path, help="default: benchmarks/toast-leak-TASK.json")
    args = parser.parse_args(argv)
    args.calibration = 1
    if args.task == "cifar" and (args.weights is None or args.cifar is None or not args.cifar.exists()):
        print("--weights and --cifar are needed; tools/bench_accuracy.py --help says where they come from", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    out = args.out or Path(__file__).parents[1] / "benchmarks" / f"toast-leak-{args.task}.json"
    with tempfile.TemporaryDirectory() as name:
        task = bench_accuracy.TASKS[args.task](args, Path(name))
        for schedule in args.schedules or SCHEDULES[args.task]:
            for row in leaks(task, schedule, args, Path(name)):
                if row["schedule"] == "dense" and rows:
                    continue
                rows.append(row)
                print(f"{row['schedule']} | {row['company']}, batch {row['batch']} | {told(row)}", file=sys.stderr, flush=True)
                out.write_text(json.dumps({"task": task.name, "test": len(task.test), "rows": rows}, indent=1) + "\n")
    table = Table(title=f"{task.name}, {len(task.test)} test images, nothing trained")
    for heading in ("unread by fc2", "images of a batch", "batch", "accuracy"):
        table.add_column(heading)
    for row in rows:
        table.add_row(row["schedule"], row["company"], str(row["batch"]), told(row))
    Console(width=130, highlight=False).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
