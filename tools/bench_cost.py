"""What a default run costs beside plain inference of the same images, in time and in memory.

    python tools/bench_cost.py [--runs deit_small:64,deit_small:1024] [--repeats 3] [--keep FOLDER] [--out FILE.json]

Random weights, photos made here, two cores or what the machine has. Taking turns, everything in a fresh process:

    inference      ONNX Runtime runs the images, 32 at a time, decoded before; the time is that of the runs alone
    toastc         toastc MODEL.onnx -o OUT.onnx --target macs=0.6 --calibrate PHOTOS --images N, from start to exit
    without data   the same without --calibrate (images 0)

Prints for each model and number of images the seconds of both, their ratio (the median of the turns, and the spread), the seconds
of each pass, and the peak of toastc's memory less the size of the model's file. The peak is ru_maxrss, mapped pages of files
included; a child inherits its parent's, so nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
MODELS = {
    "deit_small": "deit_small_patch16_224", "deit_base": "deit_base_patch16_224", "vit_large": "vit_large_patch16_224",
    "vit_huge": "vit_huge_patch14_224", "swin_tiny": "swin_tiny_patch4_window7_224",
}  # fmt: skip
TARGETS = {  # times inference, and bytes above the file, at most
    ("deit_small", 64): (8.0, 1.0e9), ("deit_small", 1024): (3.0, 1.2e9), ("deit_base", 64): (8.0, 1.5e9),
    ("deit_base", 512): (4.0, 1.8e9), ("vit_large", 64): (8.0, 2.5e9), ("vit_huge", 64): (8.0, 5e9), ("vit_huge", 0): (None, 5e9),
    ("swin_tiny", 64): (10.0, 1.0e9),
}  # fmt: skip
Run = dict[str, Any]


# ---- in processes of their own ----------------------------------------------------------------------------------


def export(name: str, path: str) -> None:
    import torch
    from bench_compile import random_vit

    torch.onnx.export(
        random_vit(MODELS[name]), (torch.zeros(2, 3, 224, 224),), path, dynamo=True, opset_version=20, verbose=False,
        external_data="small" not in name, input_names=["image"], dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip


def photograph(folder: str, count: str) -> None:
    import numpy as np
    from PIL import Image

    from toastc.calibration.synthetic import TEXTURES, scene, textures

    rng = np.random.default_rng(1)
    bank = textures(rng, TEXTURES, 256)
    for n in range(int(count)):
        Image.fromarray((255 * scene(rng, bank)).astype(np.uint8).transpose(1, 2, 0)).save(Path(folder) / f"{n}.jpg", quality=92)


def infer(path: str, photos: str, count: str) -> None:
    """Prints the seconds of the runs."""
    import onnxruntime as ort

    from toastc.calibration import open_data

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    batches = list(open_data(photos, {feed: (None, 3, 224, 224)}, limit=int(count)))
    session.run(None, {feed: batches[0][feed][:1]})
    start = time.perf_counter()
    for batch in batches:
        session.run(None, batch)
    print(time.perf_counter() - start)


# ---- here -------------------------------------------------------------------------------------------------------


def timed(command: list[str]) -> Run:
    """Seconds, peak in bytes, and what it says."""
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read().decode()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}\n{text[-2000:]}")
    return {"seconds": seconds, "peak": usage.ru_maxrss * 1024, "said": text}


def own(what: str, *args: object) -> list[str]:
    return [sys.executable, __file__, "--child", what, *map(str, args)]


def measured(name: str, count: int, repeats: int, folder: Path) -> Run:
    model, photos, out = folder / f"{name}.onnx", folder / "photos", folder / "out.onnx"
    if not model.exists():
        timed(own("export", name, model))
    size = sum(file.stat().st_size for file in folder.glob(f"{name}.onnx*"))
    command = [sys.executable, "-m", "toastc", str(model), "-o", str(out), "--target", "macs=0.6", "--json", "--quiet"]
    command += ["--calibrate", str(photos), "--images", str(count)] if count else []
    turns: list[Run] = []
    for _ in range(repeats):
        inference = float(timed(own("infer", model, photos, count or 64))["said"])
        run = timed(command)
        report = json.loads(run.pop("said"))
        turns.append(run | {"inference": inference, "ratio": run["seconds"] / inference, "passes": report["seconds"]})
        for file in folder.glob("out.onnx*"):
            file.unlink()
    passes = {step: median(turn["passes"].get(step, 0.0) for turn in turns) for step in turns[0]["passes"]}
    return {"model": name, "images": count, "file": size, "turns": turns, "passes": passes}


def shown(rows: list[Run]) -> Table:
    table = Table("model", "images", "inference", "toastc", "times", "peak above the file", "the dearest passes", box=None)
    for row in rows:
        turns, target = row["turns"], TARGETS.get((row["model"], row["images"]))
        ratios, peak = [turn["ratio"] for turn in turns], max(turn["peak"] for turn in turns) - row["file"]
        ratio = f"{median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})" if row["images"] else "-"
        room = f"{peak / 1e9:.2f} GB"
        if target:
            ratio += (
                ""
                if target[0] is None or not row["images"]
                else (" met" if median(ratios) <= target[0] else f" MISSED {target[0]:g}")
            )
            room += " met" if peak <= target[1] else f" MISSED {target[1] / 1e9:g}"
        dearest = sorted(row["passes"].items(), key=lambda step: -step[1])[:5]
        table.add_row(
            row["model"], str(row["images"]), f"{median(t['inference'] for t in turns):.1f} s",
            f"{median(t['seconds'] for t in turns):.1f} s", ratio, room, ", ".join(f"{n} {s:.1f}" for n, s in dearest),
        )  # fmt: skip
    return table


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        {"export": export, "photograph": photograph, "infer": infer}[sys.argv[2]](*sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default=",".join(f"{name}:{count}" for name, count in TARGETS), help="MODEL:IMAGES, ...")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="a folder for models and photos, to be used again")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "cost-cpu.json")
    args = parser.parse_args()
    runs = [(name, int(count)) for name, _, count in (each.partition(":") for each in args.runs.split(","))]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        (folder / "photos").mkdir(parents=True, exist_ok=True)
        most = max([64, *(count for _, count in runs)])
        if len(list((folder / "photos").iterdir())) < most:
            timed(own("photograph", folder / "photos", most))
        rows = []
        for name, count in runs:
            rows.append(measured(name, count, args.repeats, folder))
            Console(width=160).print(shown(rows[-1:]))
    Console(width=160).print(shown(rows))
    surroundings = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    surroundings |= {name: version(name) for name in ("onnxruntime", "numpy", "onnx")}
    args.out.write_text(json.dumps({"surroundings": surroundings, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
