"""Dense against pruned, taking turns in one run: medians and spreads, never a figure without its setting."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..graphs.onnx import macs_of, read_model, sample_inputs, sizes_for
from ..graphs.onnx import session as ort
from ..graphs.onnx.inputs import batch_symbol
from ..system.errors import ToastcError
from ..system.files import scratch
from ..system.progress import Tell
from ..system.vocabulary import Json

GAIN = 1.02  # less is none
MEMORY = r"""
import re, resource, sys
from pathlib import Path
import numpy as np, onnxruntime as ort
file, feeds, threads = sys.argv[1:]
options = ort.SessionOptions()
options.log_severity_level, options.intra_op_num_threads = 4, int(threads)
given = dict(np.load(feeds))

def peak():  # what getrusage says is inherited on Linux
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
made = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
for _ in range(2):
    made.run(None, given)
print(peak() - before)
"""


def bench_files(
    dense: Path, pruned: Path, provider: str, batches: Sequence[int], threads: int, seconds: float, tell: Tell,
    options: Mapping[str, str] | None = None, memory: bool = True,
) -> Json:  # fmt: skip
    """`options` are the provider's own. Peak memory is that of a process of its own, beyond what it holds before it loads."""

    model = read_model(dense)
    macs = macs_of(dense), macs_of(pruned)
    free = batch_symbol(model)
    rows: list[Json] = []
    for batch in batches if free else batches[:1]:
        tell(f"batch {batch}")
        sizes = sizes_for(model)
        if free is not None:
            sizes[free] = batch
        feeds = sample_inputs(model, sizes)
        times = ort.time_interleaved([dense, pruned], feeds, provider, threads, seconds, options=options)
        actual = batch if free else next(iter(feeds.values())).shape[0]
        row = compared(times, actual) | {"provider": provider}
        if memory and provider == "cpu":
            for name, file in (("dense", dense), ("pruned", pruned)):
                row[name]["peak_mb"] = peak(file, feeds, threads)
        rows.append(row)
    if not rows:
        raise ToastcError("bench: give at least one batch size")
    notes = [] if free else ["the file has a fixed batch size; only that one was timed"]
    return finished(str(dense), str(pruned), macs, rows, notes) | {"threads": threads, "options": dict(options or {})}


def compared(times: Sequence[Sequence[float]], batch: int) -> Json:
    """Of two models that took turns: each by itself, and the ratios of neighbouring runs, in which noise mostly cancels."""
    a, b = (summary(t, batch) for t in times)
    ratios = [x / y for x, y in zip(*times, strict=False)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"batch": batch, "dense": a, "pruned": b, "speedup": middle, "speedup_iqr": [low, high]}


def summary(times: Sequence[float], batch: int) -> Json:
    low, middle, high = statistics.quantiles(times, n=4)
    return {"median_ms": middle, "iqr_ms": high - low, "runs": len(times), "per_second": 1e3 * batch / middle}


def finished(dense: str, pruned: str, macs: tuple[int | None, int | None], rows: list[Json], notes: list[str]) -> Json:
    """With what the MACs promise, and a sentence where that is not what came."""
    ideal = macs[0] / macs[1] if macs[0] and macs[1] else None
    best = max(r["speedup"] for r in rows)
    if best < GAIN:
        notes.append(why_no_gain(ideal))
    elif ideal is not None and ideal > GAIN and best < 1 + 0.5 * (ideal - 1):
        notes.append(
            "less than half of the promised gain: what the MACs do not count (norms, softmax, copies, launching) has not shrunk"
        )
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()}
    return {"dense": dense, "pruned": pruned, "ideal": ideal, "rows": rows, "notes": notes, "machine": machine}


def why_no_gain(ideal: float | None) -> str:
    if ideal is not None and ideal < GAIN:
        return "no gain was measured, and none was to be expected: both models have the same MACs"
    return "no gain was measured: launching the nodes of so small a model takes most of the time, or its widths suit no kernel"


def peak(file: Path, feeds: Mapping[str, np.ndarray], threads: int) -> float | None:
    """Megabytes that loading and running a file on the CPU adds to a process."""
    with scratch() as folder:
        np.savez(folder / "feeds.npz", **dict(feeds))  # type: ignore[arg-type]
        given = [sys.executable, "-c", MEMORY, str(file), str(folder / "feeds.npz"), str(threads)]
        made = subprocess.run(given, capture_output=True, text=True, check=False)
    return round(int(made.stdout) / 1024, 1) if made.returncode == 0 else None
