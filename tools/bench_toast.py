"""ToaSt's pieces one by one on a real model: what each score is worth, with error bars over seeds. Nothing is trained.

    python tools/bench_toast.py cifar --weights vits14_cifar10_fp16.safetensors --cifar FOLDER [--test 5000] [--seeds 3]
    python tools/bench_toast.py digits

attention   half of every head's qk and vo channels, the first block whole: geometric median (Weiszfeld, coordinate-wise; queries
            and keys joined, apart, averaged; one set for all), l2, l1, what they do on data, at random; with what is removed
            from the values dropped, their biases folded, their means folded
ffn         half of the hidden channels, the first block whole, chosen once on calibration data (static): guided by the class
            token or not, from all tokens or a sample, one sample of each size; weights; at random

Accuracy on the test images, mean over seeds (of the sample, of chance) with the standard error of the mean over them, and the
paired standard error of the difference to the dense model. The images to calibrate on are training images, without labels.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench_accuracy
import numpy as np
from rich.console import Console
from rich.table import Table

import toastc

GM = "score-weights{by=geometric-median"
KEEP = "match-sites{spare=first}"
ATTENTION = {
    "geometric median": f"{KEEP},{GM}}},plan-ratios",
    "  its biases folded": f"{KEEP},{GM}}},plan-ratios,fold-biases",
    "  its means folded": f"{KEEP},collect-moments,{GM}}},plan-ratios,fold-consumers{{by=mean}}",
    "  coordinate-wise": f"{KEEP},{GM},median=coordinate}},plan-ratios",
    "  of queries alone": f"{KEEP},{GM},qk=q}},plan-ratios",
    "  of keys alone": f"{KEEP},{GM},qk=k}},plan-ratios",
    "  the mean of both": f"{KEEP},{GM},qk=average}},plan-ratios",
    "  one set for all": f"{KEEP},{GM}}},share-scores,plan-ratios",
    "l2": f"{KEEP},score-weights,plan-ratios",
    "l1": f"{KEEP},score-weights{{by=l1}},plan-ratios",
    "activations": f"{KEEP},collect-moments,score-moments{{by=magnitude}},plan-ratios",
    "at random *": f"{KEEP},score-weights{{by=random}},plan-ratios",
}
TCS = f"{KEEP},score-tokens{{"
FFN = {
    "class token, all tokens": f"{TCS}sample=1,deepest=1}},plan-ratios",
    "class token, 2 to 20 % *": f"{TCS}sample=0.02,deepest=0.2}},plan-ratios",
    "class token, 1 token *": f"{TCS}count=1}},plan-ratios",
    "class token, code's balance": f"{TCS}sample=1,deepest=1,balance=code}},plan-ratios",
    "magnitude, all tokens": f"{TCS}guide=no,sample=1,deepest=1}},plan-ratios",
    "magnitude, 2 to 20 % *": f"{TCS}guide=no,sample=0.02,deepest=0.2}},plan-ratios",
    "magnitude, 1 token *": f"{TCS}guide=no,count=1}},plan-ratios",
    "geometric median": f"{KEEP},{GM}}},plan-ratios",
    "l2": f"{KEEP},score-weights,plan-ratios",
    "at random *": f"{KEEP},score-weights{{by=random}},plan-ratios",
}
PIECES = {"attention": ({"attention": {"qk": 0.5, "vo": 0.5}}, ATTENTION), "ffn": ({"ffn": {"hidden": 0.5}}, FFN)}


def measured(task: bench_accuracy.Task, ratios: Any, passes: str, seeds: int, dense: np.ndarray, folder: Path) -> dict[str, Any]:
    found, small = [], folder / "small.onnx"
    for seed in range(seeds):
        toastc.prune(
            task.model,
            ratios | {"round_to": 1},
            passes=passes,
            data=folder / "calibration.npy",
            seed=seed,
            verify=False,
            output=small,
        )
        found.append(bench_accuracy.row(dense, bench_accuracy.outputs(small, task.test), task.labels))
    each = [f["accuracy"] for f in found]
    error = float(np.std(each, ddof=1) / np.sqrt(len(each))) if len(each) > 1 else 0.0
    return {"accuracy": float(np.mean(each)), "over_seeds": error, "paired_se": found[0]["paired_se"], "each": each,
            "output_error": float(np.mean([f["output_error"] for f in found]))}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("cifar", "digits"))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3, help="of the pieces marked with *")
    parser.add_argument("--pieces", type=lambda t: t.split(","), default=list(PIECES))
    parser.add_argument("--out", type=Path, help="default: benchmarks/toast-pieces-TASK.json")
    args = parser.parse_args()
    if args.task == "cifar" and (args.weights is None or args.cifar is None or not args.cifar.exists()):
        print("--weights and --cifar are needed; tools/bench_accuracy.py --help says where they come from", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    out = args.out or Path(__file__).parents[1] / "benchmarks" / f"toast-pieces-{args.task}.json"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = bench_accuracy.TASKS[args.task](args, folder)
        np.save(folder / "calibration.npy", task.calibration)
        dense = bench_accuracy.outputs(task.model, task.test)
        whole = float((dense.argmax(1) == task.labels).mean())
        for piece in args.pieces:
            ratios, ways = PIECES[piece]
            for way, passes in ways.items():
                seeds = args.seeds if way.endswith("*") else 1
                rows.append({"piece": piece, "way": way} | measured(task, ratios, passes, seeds, dense, folder))
                print(f"{piece} | {way} | {told(rows[-1])}", file=sys.stderr, flush=True)
                about = {"task": task.name, "dense": whole, "test": len(task.test), "calibration": len(task.calibration)}
                out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    table = Table(title=f"{task.name}: half of the channels, {len(task.test)} test images, dense {100 * whole:.2f} %")
    for heading in ("piece", "score", "accuracy", "output error"):
        table.add_column(heading)
    for row in rows:
        table.add_row(row["piece"], row["way"], told(row), f"{row['output_error']:.3f}")
    Console(width=120, highlight=False).print(table)
    return 0


def told(row: dict[str, Any]) -> str:
    seeds = f", over {len(row['each'])} seeds +- {100 * row['over_seeds']:.2f}" if len(row["each"]) > 1 else ""
    return f"{100 * row['accuracy']:.2f} +- {100 * row['paired_se']:.2f}{seeds}"


if __name__ == "__main__":
    sys.exit(main())
