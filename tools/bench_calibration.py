"""What calibrating costs: measuring N images, against plain inference of the same N images in the same runtime.

    python tools/bench_calibration.py [--model deit_small_patch16_224] [--images 128,256] [--turns 3]

Random weights, ONNX Runtime on the CPU, both taking turns. Prints seconds, their ratio and the growth of memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from toastc.calibration import open_data
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.passes import CollectMoments, MatchSites
from toastc.passes.state import State, run


def exported(name: str, folder: Path) -> Path:
    import timm
    import torch

    model = timm.create_model(name).eval()
    torch.onnx.export(
        model, (torch.zeros(2, 3, 224, 224),), folder / "m.onnx", dynamo=True, opset_version=20, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
    )  # fmt: skip
    return folder / "m.onnx"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--images", type=lambda t: [int(x) for x in t.split(",")], default=[128, 256])
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        path = exported(args.model, Path(name))
        for count in args.images:
            images = np.random.default_rng(0).standard_normal((count, 3, 224, 224)).astype(np.float32)
            graph = OnnxGraph(load_model(path))
            given = next(iter(graph.input_sizes()))
            state, _ = run([MatchSites()], State(graph, data=open_data([], graph.input_sizes())))
            plain = graph.probe([])
            inference, measuring = [], []
            for _ in range(args.turns):
                start = time.perf_counter()
                for i in range(0, count, 32):
                    plain({given: images[i : i + 32]})
                inference.append(time.perf_counter() - start)
                state.data.source = [images[i : i + 32] for i in range(0, count, 32)]
                start = time.perf_counter()
                run([CollectMoments()], state)
                measuring.append(time.perf_counter() - start)
            ratios = [a / b for a, b in zip(measuring, inference, strict=True)]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rows.append({"images": count, "inference": inference, "measuring": measuring, "ratios": ratios, "peak_mb": peak})
            seconds = f"inference {statistics.median(inference):.1f} s, measuring {statistics.median(measuring):.1f} s"
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) times"
            print(f"{count} images: {seconds}, {spread}; peak so far {peak:.0f} MB", flush=True)
    print(json.dumps({"model": args.model, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
