"""Many compiles in one process: memory, open files and threads stay what they were."""

from __future__ import annotations

import gc
import os
import statistics
import threading
from pathlib import Path

import numpy as np

from . import RATIOS, Row, progress, workplace

FLAT = 4 << 20  # bytes the second half may grow by: the noise of an allocator


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(count: int, seed: int = 0, say: bool = True) -> Row:
    """Every third is calibrated. What the second half grew by is told for each compile, by the slope of a line through it."""
    import models

    import toastc

    memory, files = [], []
    with workplace() as place:
        model = models.save(models.vit(), place / "work" / "model.onnx")
        data = np.random.default_rng(seed).standard_normal((32, 3, 16, 16)).astype(np.float32)
        for done in range(1, count + 1):
            more = {"data": data, "target": "macs=0.7"} if done % 3 == 0 else {"ratios": RATIOS, "recipe": "magnitude"}
            toastc.prune(model, output=place / "work" / "out.onnx", **more)
            gc.collect()  # what waits for the collector comes and goes by megabytes
            memory.append(resident())
            files.append(len(os.listdir("/proc/self/fd")))
            if say:
                progress("soak", done, count, 0)
    half = memory[count // 2 :]
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0])
    fine = slope * len(half) < FLAT and files[-1] <= files[0] + 2
    return {
        "compiles": count, "first_mb": round(memory[0] / 2**20, 1), "middle_mb": round(half[0] / 2**20, 1),
        "last_mb": round(statistics.median(memory[-10:]) / 2**20, 1), "bytes_a_compile": round(slope),
        "open_files": [files[0], files[-1]], "threads": threading.active_count(), "bad": int(not fine),
    }  # fmt: skip
