"""Top-1 and top-5 of an ONNX file or a timm model on a folder of the usual layout, one folder of images a class.

    python tools/eval_imagenet.py imagenet/val --timm deit_small_patch16_224            # pretrained weights, dense
    python tools/eval_imagenet.py imagenet/val --onnx small.onnx --like deit_small_patch16_224
    python tools/eval_imagenet.py imagenet/val --onnx dense.onnx small.onnx --like deit_small_patch16_224 --json

Preprocessing is the timm model's (`--like` for files, which do not carry it). Several files see the same images in one run,
and every one after the first is compared with the first: agreement, and the paired standard error of the difference.
Classes are numbered by the sorted names of their folders, as ImageNet's are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}
Model = Callable[[np.ndarray], np.ndarray]


def listed(folder: Path) -> tuple[list[Path], np.ndarray, list[str]]:
    """The images, the number of each one's class, and the classes."""
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir())
    files = [(p, n) for n, name in enumerate(classes) for p in sorted((folder / name).rglob("*")) if p.suffix.lower() in SUFFIXES]
    return [p for p, _ in files], np.array([n for _, n in files]), classes


def batches(files: list[Path], transform: Any, size: int) -> Iterator[np.ndarray]:
    from PIL import Image

    def load(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(transform(image.convert("RGB")))

    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(files), size):
            yield np.stack(list(pool.map(load, files[start : start + size])))


def onnx_model(path: Path, provider: str) -> Model:
    from toastc.graphs.onnx import session as ort

    session = ort.session(path, provider)
    name = session.get_inputs()[0].name
    return lambda images: np.asarray(session.run(None, {name: images})[0])


def timm_model(name: str, checkpoint: str) -> Model:
    import timm
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = timm.create_model(name, pretrained=not checkpoint, checkpoint_path=checkpoint).eval().to(device)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model(torch.from_numpy(images).to(device)).float().cpu())

    return run


def summary(logits: np.ndarray, labels: np.ndarray, first: np.ndarray | None) -> dict[str, float]:
    top = np.argsort(-logits, axis=1)[:, :5]
    right = top[:, 0] == labels
    found = {"top1": float(right.mean()), "top5": float((top == labels[:, None]).any(axis=1).mean())}
    if first is not None:
        before = first.argmax(1) == labels
        apart = right.astype(float) - before
        found |= {
            "difference": float(apart.mean()),
            "paired_se": float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else 0.0,
            "agreement": float((logits.argmax(1) == first.argmax(1)).mean()),
        }
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--timm", metavar="NAME", help="a timm model with its pretrained weights")
    parser.add_argument("--checkpoint", default="", help="weights for --timm instead of the pretrained ones")
    parser.add_argument("--onnx", type=Path, nargs="+", default=[], metavar="M.onnx")
    parser.add_argument("--like", metavar="NAME", help="the timm model whose preprocessing the files want")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    like = args.timm or args.like
    if not like or not (args.timm or args.onnx):
        parser.error("give --timm NAME, or --onnx FILES and --like NAME")
    if not args.folder.is_dir():
        parser.error(f"{args.folder}: no such folder")
    files, labels, classes = listed(args.folder)
    if not files:
        parser.error(f"{args.folder}: holds no folders of images")
    import timm
    from timm.data import create_transform, resolve_data_config

    transform = create_transform(**resolve_data_config({}, model=timm.create_model(like, pretrained=False)))
    models = {args.timm: timm_model(args.timm, args.checkpoint)} if args.timm else {}
    models |= {str(path): onnx_model(path, args.provider) for path in args.onnx}
    logits: dict[str, list[np.ndarray]] = {name: [] for name in models}
    steps = range(0, len(files), args.batch)
    for _, images in zip(
        track(steps, description="", console=Console(stderr=True)), batches(files, transform, args.batch), strict=True
    ):
        for name, model in models.items():
            logits[name].append(model(images))
    made = {name: np.concatenate(parts) for name, parts in logits.items()}
    first = next(iter(made.values()))
    rows = {name: summary(own, labels, None if own is first else first) for name, own in made.items()}
    if args.json:
        print(json.dumps({"images": len(files), "classes": len(classes), "models": rows}, indent=1))
        return 0
    for name, found in rows.items():
        more = f", {100 * found['difference']:+.2f} +- {100 * found['paired_se']:.2f}" if "difference" in found else ""
        print(f"{name}: top-1 {100 * found['top1']:.2f} %, top-5 {100 * found['top5']:.2f} % of {len(files)} images{more}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
