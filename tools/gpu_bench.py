"""What pruning brings on a GPU: dense and pruned beside each other, both fused and compiled, in one command.

    python tools/gpu_bench.py                              # under eight minutes on one recent GPU
    python tools/gpu_bench.py --device cpu --models deit_tiny_patch16_224 --batches 1 --size 64 --seconds 0.2    # does it run

Random weights: speed does not depend on them. Every model as it is, at ToaSt's operating point (static), at 60 % of the MACs
(all widths alike, multiples of 8) and with merged tokens (h, v at a third and at two thirds of its blocks); in ONNX Runtime
(CUDA, float16, attention fused) and through inductor (bfloat16). All variants of a model take turns in one process. Writes
benchmarks/gpu-NAME-DATE.json after every row, and leaves out what the time does not allow, the last models first.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
from rich.console import Console
from rich.table import Table

import toastc
from toastc.graphs.onnx import session as ort
from toastc.plans.schedules import schedules
from toastc.system.errors import ToastcError
from toastc.system.interleave import interleave

MODELS = (
    "vit_base_patch16_224.mae", "vit_large_patch16_224.mae", "deit_small_patch16_224", "swin_base_patch4_window7_224",
    "vit_huge_patch14_224.mae",
)  # fmt: skip
Row = dict[str, Any]


def variants(name: str, blocks: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is asked of toastc.prune."""
    if name in (known := schedules()):
        point = list(known[name])[-1]
        yield f"toast {point}", {"ratios": known[name][point].ratios()}
    yield "macs=0.6", {"target": "macs=0.6"}
    yield "tokens", {"tokens": f"h{blocks // 3},v{2 * blocks // 3}"}


def exported(model: torch.nn.Module, size: int, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(2, 3, size, size),), path, dynamo=True, opset_version=20, verbose=False,
            input_names=["image"], dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=True,
        )  # fmt: skip
    return path


def on_runtime(path: Path, device: str) -> Callable[[int, int], Callable[[], None]]:
    """Runs with inputs and outputs where the model is: what is timed is the model alone."""
    session = ort.session(path, "cuda" if device == "cuda" else "cpu")

    def bound(batch: int, size: int) -> Callable[[], None]:
        binding = session.io_binding()
        images = np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32)
        binding.bind_ortvalue_input("image", onnxruntime.OrtValue.ortvalue_from_numpy(images, device, 0))
        for out in session.get_outputs():
            binding.bind_output(out.name, device)

        def go() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return go

    return bound


def on_inductor(model: torch.nn.Module, device: str, compiled: bool) -> Callable[[int, int], Callable[[], None]]:
    model = model.to(device, torch.bfloat16)
    run = torch.compile(model, dynamic=True) if compiled else model

    def bound(batch: int, size: int) -> Callable[[], None]:
        images = torch.randn(batch, 3, size, size, device=device, dtype=torch.bfloat16)

        def go() -> None:
            with torch.inference_mode():
                run(images)
            if device == "cuda":
                torch.cuda.synchronize()

        return go

    return bound


def measured(name: str, args: argparse.Namespace, folder: Path, left: Callable[[], float]) -> Iterator[Row]:
    size = args.size
    model = timm.create_model(name.partition(".")[0], img_size=size).eval()
    inputs = (torch.zeros(2, 3, size, size),)
    blocks = sum(len(stage.blocks) for stage in model.layers) if hasattr(model, "layers") else len(model.blocks)
    dense = exported(model, size, folder / "dense.onnx")
    half: dict[str, Any] = {"runtime": "ort-cuda", "dtype": "fp16", "verify": args.verify}
    quick: dict[str, Any] = {"recipe": "magnitude", "verify": args.verify}
    whole = toastc.prune(dense, output=folder / "whole.onnx", **half).report
    files = {"dense": (folder / "whole.onnx", 1.0, whole.deployed["attentions"])}
    modules = {"dense": model}
    for label, asked in variants(name, blocks):
        try:
            asked = {"ratios": asked.pop("ratios", None), **asked}
            report = toastc.prune(dense, output=folder / f"{len(files)}.onnx", **asked, **half, recipe="magnitude").report
            modules[label] = toastc.prune(copy.deepcopy(model), example_inputs=inputs, **asked, **quick).model
        except ToastcError as error:
            yield {"model": name, "variant": label, "refused": str(error)}
            continue
        file = folder / f"{len(files)}.onnx"
        files[label] = file, report.before.macs / report.after.macs, report.deployed["attentions"]
    for runtime in args.runtimes:
        if left() < 0:
            yield {"model": name, "variant": "all", "runtime": runtime, "refused": "no time was left"}
            continue
        bound = {
            label: on_runtime(files[label][0], args.device)
            if runtime == "onnxruntime"
            else on_inductor(modules[label], args.device, runtime == "inductor")
            for label in files
        }
        for batch in args.batches:
            times = dict(zip(bound, interleave([make(batch, size) for make in bound.values()], args.seconds), strict=True))
            for label, own in times.items():
                ratios = [a / b for a, b in zip(times["dense"], own, strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                ideal, attentions = files[label][1:]
                yield {
                    "model": name, "variant": label, "runtime": runtime, "batch": batch, "runs": len(own),
                    "ms": statistics.median(own), "speedup": middle, "speedup_iqr": [low, high], "ideal": ideal,
                    "fused_attentions": attentions,
                }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--models", type=lambda t: t.split(","), default=list(MODELS))
    parser.add_argument("--batches", type=lambda t: [int(x) for x in t.split(",")], default=[1, 64, 128])
    parser.add_argument("--runtimes", type=lambda t: t.split(","), default=["onnxruntime", "inductor"], help="also: eager")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each model, runtime and batch size")
    parser.add_argument("--minutes", type=float, default=7.5, help="nothing new is begun after so many")
    parser.add_argument("--verify", action="store_true", help="prove every file and module, too (on the CPU; takes long)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is here; --device cpu tries the script itself", file=sys.stderr)
        return 2
    logging.disable(logging.WARNING)
    card = torch.cuda.get_device_name().replace(" ", "-") if args.device == "cuda" else "cpu"
    out = args.out or Path(__file__).parents[1] / "benchmarks" / f"gpu-{card}-{datetime.date.today()}.json"
    about = {
        "device": card, "on": platform.platform(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__,
        "toastc": toastc.__version__, "onnxruntime_dtype": "float16", "torch_dtype": "bfloat16", "size": args.size,
    }  # fmt: skip
    start, rows = time.monotonic(), list[Row]()

    def left() -> float:
        return args.minutes * 60 - (time.monotonic() - start)

    for name in args.models:
        if left() < 0:
            rows.append({"model": name, "variant": "all", "refused": "no time was left"})
        with tempfile.TemporaryDirectory() as folder:
            for row in measured(name, args, Path(folder), left) if left() >= 0 else ():
                print(row, file=sys.stderr, flush=True)
                rows.append(row)
                out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
        torch._dynamo.reset()
    out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    show(rows, card)
    return 0


def show(rows: list[Row], card: str) -> None:
    table = Table(title=card)
    for heading in ("model", "variant", "runtime", "batch", "ms", "speed-up", "ideal", "of the ideal"):
        table.add_column(heading, no_wrap=True)
    for r in rows:
        if "refused" in r:
            table.add_row(r["model"], r["variant"], r.get("runtime", ""), "", "", r["refused"][:24], "", "")
            continue
        spread = f"{r['speedup']:.2f} ({r['speedup_iqr'][0]:.2f}-{r['speedup_iqr'][1]:.2f})"
        share = f"{100 * r['speedup'] / r['ideal']:.0f} %"
        table.add_row(
            r["model"], r["variant"], r["runtime"], str(r["batch"]), f"{r['ms']:.2f}", spread, f"{r['ideal']:.2f}", share
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    sys.exit(main())
