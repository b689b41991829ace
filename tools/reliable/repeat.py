"""The same inputs and the same seed: the same bytes, every time, and the same plan on one thread and on two."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import RATIOS, Row, found_in, workplace
from .runs import ran


def commands(inputs: Path, out: Path) -> dict[str, list[str]]:
    """Of every kind of output one; what is random in them follows from the seed."""
    model, ratios, data = str(inputs / "model.onnx"), str(inputs / "r.json"), str(inputs / "data.npy")
    compiled = [model, "-o", str(out / "out.onnx"), "--quiet"]
    return {
        "magnitude": [*compiled, "--ratios", ratios, "--recipe", "magnitude", "--plan-out", str(out / "plan")],
        "weights outside": [str(inputs / "outside.onnx"), *compiled[1:], "--ratios", ratios, "--recipe", "magnitude"],
        "synthetic": [*compiled, "--target", "macs=0.7"],
        "calibrated": [*compiled, "--target", "macs=0.7", "--calibrate", data, "--moments-out", str(out / "m"),
                       "--plan-out", str(out / "plan"), "--ratios-out", str(out / "r.json")],
        "vbp": [*compiled, "--ratios", ratios, "--recipe", "vbp", "--calibrate", data],
        "fused": [*compiled, "--ratios", ratios, "--recipe", "magnitude", "--for", "ort-cpu"],
        "int8": [*compiled, "--for", "ort-cpu", "--quantize", "int8", "--calibrate", data],
        "moments": ["calibrate", model, data, "-o", str(out / "m"), "--quiet"],
    }  # fmt: skip


def made_by(args: list[str], out: Path, cpus: set[int]) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    end = ran(args, partial(os.sched_setaffinity, 0, cpus), OMP_NUM_THREADS=str(len(cpus)))
    assert end.status == 0, end.said
    return found_in(out)


def plan_in(files: dict[str, Any]) -> object:
    """Which channels stay: the plan a model carries."""
    import onnx

    data = files.get("out.onnx")
    if data is None:
        return None
    props = {p.key: p.value for p in onnx.ModelProto.FromString(data).metadata_props}
    return json.loads(props["toastc.plan"]) if "toastc.plan" in props else None


def run(count: int, seed: int = 0, say: bool = True) -> Row:
    import models

    cpus = sorted(os.sched_getaffinity(0))
    row: Row = {"commands": 0, "times": count, "other bytes": [], "other plans on two threads": [], "cpus tried": len(cpus[:2])}
    with workplace() as place:
        inputs, out = place / "work" / "in", place / "work" / "out"
        inputs.mkdir()
        models.save(models.vit(), inputs / "model.onnx")
        models.save_external(models.vit(), inputs / "outside.onnx")
        (inputs / "r.json").write_text(json.dumps(RATIOS))
        np.save(inputs / "data.npy", np.random.default_rng(seed).standard_normal((100, 3, 16, 16)).astype(np.float32))
        for name, args in commands(inputs, out).items():
            first = made_by(args, out, {cpus[0]})
            same: Callable[[dict[str, Any]], bool] = partial(first.__eq__)
            for _ in range(1, count):
                if not same(made_by(args, out, {cpus[0]})):
                    row["other bytes"].append(name)
            if len(cpus) > 1 and plan_in(made_by(args, out, set(cpus[:2]))) != plan_in(first):
                row["other plans on two threads"].append(name)
            row["commands"] += 1
            if say:
                print(f"repeat: {name}", flush=True)
    row["bad"] = len(row["other bytes"]) + len(row["other plans on two threads"])
    return row
