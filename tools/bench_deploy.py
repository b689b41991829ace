"""What files for a runtime bring on the CPU: float and int8, plain and fused, whole and pruned, all taking turns in one run.

    python tools/bench_deploy.py [--models deit_small_patch16_224,deit_base_patch16_224] [--batches 1,8] [--keep FOLDER]

Random weights, ONNX Runtime on the CPU. `half` has every width of attention and FFN halved. A ratio is that of neighbouring runs,
its median with the quartiles. Writes benchmarks/deploy-cpu.json. With --keep the files stay, and are taken again the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

import toastc
from toastc.graphs.onnx import macs_of
from toastc.graphs.onnx import session as ort

HALF = {"attention": {"qk": 0.5, "vo": 0.5}, "ffn": 0.5}
VARIANTS: dict[str, dict[str, Any]] = {
    "half": {"ratios": HALF},
    "whole, fused": {"runtime": "ort-cpu"},
    "half, fused": {"ratios": HALF, "runtime": "ort-cpu"},
    "whole, int8": {"runtime": "ort-cpu", "quantize": "int8"},
    "half, int8": {"ratios": HALF, "runtime": "ort-cpu", "quantize": "int8"},
}


def prepared(name: str, folder: Path) -> dict[str, Path]:
    import timm
    import torch

    files = {"whole": folder / f"{name}.whole.onnx"}
    if not files["whole"].exists():
        model = timm.create_model(name).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (torch.zeros(2, 3, 224, 224),), files["whole"], dynamo=True, opset_version=20, verbose=False,
                input_names=["image"], dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
            )  # fmt: skip
    for label, asked in VARIANTS.items():
        files[label] = folder / f"{name}.{label.replace(', ', '-')}.onnx"
        if not files[label].exists():
            print(f"{name}: {label}", file=sys.stderr, flush=True)
            toastc.prune(files["whole"], asked.get("ratios"), output=files[label], recipe="magnitude",
                         runtime=asked.get("runtime", "portable"), quantize=asked.get("quantize"))  # fmt: skip
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda t: t.split(","), default=["deit_small_patch16_224", "deit_base_patch16_224"])
    parser.add_argument("--batches", type=lambda t: [int(x) for x in t.split(",")], default=[1, 8])
    parser.add_argument("--seconds", type=float, default=30.0, help="for each model and batch size")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "benchmarks" / "deploy-cpu.json")
    parser.add_argument("--prepare", action="store_true", help="make the files in --keep, and time nothing")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(exist_ok=True)
        for name in args.models:
            files = prepared(name, folder)
            macs = {label: macs_of(path) for label, path in files.items()}
            for batch in args.batches if not args.prepare else ():
                images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)
                times = ort.time_interleaved(list(files.values()), {"image": images}, "cpu", args.threads, args.seconds)
                for (label, path), own in zip(files.items(), times, strict=True):
                    low, middle, high = statistics.quantiles([a / b for a, b in zip(times[0], own, strict=True)], n=4)
                    rows.append({
                        "model": name, "batch": batch, "variant": label, "ms": statistics.median(own), "runs": len(own),
                        "speedup": middle, "speedup_iqr": [low, high], "ideal": macs["whole"] / macs[label],
                        "mb": path.stat().st_size / 1e6,
                    })  # fmt: skip
                    print(rows[-1], file=sys.stderr, flush=True)
    if args.prepare:
        return 0
    cpu = next((x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "")
    about = {"on": platform.platform(), "processor": cpu, "cores": os.cpu_count(), "threads": args.threads,
             "onnxruntime": onnxruntime.__version__}  # fmt: skip
    args.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    table = Table(title=f"ONNX Runtime {onnxruntime.__version__}, CPU, {os.cpu_count()} cores")
    for heading in ("model", "batch", "file", "ms", "speed-up", "MACs promise", "MB"):
        table.add_column(heading)
    for r in rows:
        spread = f"{r['speedup']:.2f} ({r['speedup_iqr'][0]:.2f}-{r['speedup_iqr'][1]:.2f})"
        table.add_row(r["model"], str(r["batch"]), r["variant"], f"{r['ms']:.1f}", spread, f"{r['ideal']:.2f}", f"{r['mb']:.0f}")
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
