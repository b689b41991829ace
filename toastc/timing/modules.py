"""Two torch modules against each other, taking turns, eagerly or through inductor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ..graphs.fx.capture import example_inputs_of
from ..system.interleave import interleave
from ..system.progress import Tell
from ..system.vocabulary import Inputs, Json
from .files import compared, finished


def bench_modules(
    dense: torch.nn.Module, pruned: torch.nn.Module, inputs: Inputs | None, macs: tuple[int, int], batches: Sequence[int],
    threads: int, seconds: float, compiled: bool, tell: Tell,
) -> Json:  # fmt: skip
    """On the device and in the type of the dense module; peak memory is torch's own count, on CUDA."""
    inputs = example_inputs_of(dense) if inputs is None else inputs
    device = next(dense.parameters()).device
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        rows = []
        for batch in batches:
            tell(f"batch {batch}")
            feed = [repeated(x, batch).to(device) if isinstance(x, torch.Tensor) else x for x in inputs]
            runs = [torch.compile(m) if compiled else m for m in (dense, pruned)]
            with torch.inference_mode():
                times = interleave([partial(run_once, run, feed, device) for run in runs], seconds)
            row = compared(times, batch) | {"provider": f"torch {device.type}"}
            row["mode"] = "inductor" if compiled else "eager"
            for name, run in zip(("dense", "pruned"), runs, strict=True):
                row[name]["peak_mb"] = peak(run, feed, device)
            rows.append(row)
    finally:
        torch.set_num_threads(before)
    return finished(type(dense).__name__, type(pruned).__name__, macs, rows, []) | {"threads": threads, "options": {}}


def repeated(x: torch.Tensor, batch: int) -> torch.Tensor:
    return torch.cat([x] * -(-batch // len(x)))[:batch]


def run_once(run: Callable[..., Any], feed: list[Any], device: torch.device) -> None:
    run(*feed)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(run: Callable[..., Any], feed: list[Any], device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode():
        run(*feed)
    return torch.cuda.max_memory_allocated(device) / 2**20
