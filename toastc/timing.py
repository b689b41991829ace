"""Dense against pruned on ONNX Runtime, interleaved in one run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import ToastcError
from .graphs.onnx import OnnxGraph, load_model, sample_inputs, sizes_for
from .graphs.onnx.facts import symbols
from .progress import Tell


def bench_files(
    dense: Path, pruned: Path, provider: str, batches: Sequence[int], threads: int, seconds: float, tell: Tell
) -> dict[str, Any]:
    from .runtimes import ort

    model, other = load_model(dense), load_model(pruned)
    macs = [OnnxGraph(m).totals()[0] for m in (model, other)]
    free = symbols(model)
    rows: list[dict[str, Any]] = []
    for batch in batches if free else batches[:1]:
        tell(f"batch {batch}")
        sizes = sizes_for(model)
        if free:
            sizes[free[0]] = batch
        feeds = sample_inputs(model, sizes)
        times = ort.time_interleaved([dense, pruned], feeds, provider, threads, seconds)
        a, b = (summary(t) for t in times)
        actual = batch if free else next(iter(feeds.values())).shape[0]
        row = {"batch": actual, "provider": provider, "dense": a, "pruned": b, "speedup": a["median_ms"] / b["median_ms"]}
        rows.append(row)
    if not rows:
        raise ToastcError("bench: give at least one batch size")
    ideal = macs[0] / max(macs[1], 1)
    notes = [] if free else ["the file has a fixed batch size; only that one was timed"]
    if max(r["speedup"] for r in rows) < 1.02:
        notes.append(
            "no gain was measured: launching the nodes of so small a model takes most of the time, or its widths suit no kernel"
        )
    return {"dense": str(dense), "pruned": str(pruned), "threads": threads, "ideal": ideal, "rows": rows, "notes": notes}


def summary(times: list[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(times, n=4)
    return {"median_ms": middle, "iqr_ms": high - low, "runs": len(times)}
