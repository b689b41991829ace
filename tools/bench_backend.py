"""What `backend="toastc"` costs and gains beside inductor alone.

    python tools/bench_backend.py [--model deit_base_patch16_224] [--batch 8] [--target macs=0.6] [--observe 64] [--repeats 3]

Random weights, synthetic images. First calls are fresh processes with inductor's caches and toastc's off, taking turns: what the
first call takes, what a call takes while it is observed (the median of those that follow), and what choosing takes, without and
with compiling what was chosen. Then, in one process, the two take turns on one input: how much faster it is, and how much faster
it would be if time were arithmetic. `--inputs FILE.npy --weights FILE.pt` take a model as it is instead.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np


def model_and_images(args: argparse.Namespace) -> tuple[Any, Any]:
    import timm
    import torch

    from toastc.calibration import Synthetic

    torch.manual_seed(0)
    model = timm.create_model(args.model, **json.loads(args.words)).eval()
    if args.weights:
        model.load_state_dict(torch.load(args.weights))
        return model, torch.from_numpy(np.load(args.inputs))
    sizes = {"image": (None, *model.pretrained_cfg["input_size"])}
    images = np.concatenate([batch["image"] for batch in Synthetic(sizes, args.observe + 2 * args.batch)])
    return model, torch.from_numpy(images)


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    return {"target": args.target, "observe": args.observe}


def first(args: argparse.Namespace) -> dict[str, float]:
    """One backend, from the first call on."""
    import torch

    import toastc
    from toastc.compiler.sources.dynamo import instance

    chosen: list[float] = []
    compile_itself = instance.compile

    def timed(*given: Any) -> Any:
        start = time.perf_counter()
        result = compile_itself(*given)
        chosen.append(time.perf_counter() - start)
        return result

    instance.compile = timed
    model, images = model_and_images(args)
    own = args.backend == "toastc"
    compiled = torch.compile(
        model, backend=toastc.backend if own else "inductor", options=options_of(args) if own else None, dynamic=False
    )
    times = []
    with torch.no_grad():
        for part in images.split(args.batch)[: args.observe // args.batch]:
            start = time.perf_counter()
            compiled(part)
            times.append(time.perf_counter() - start)
    found = {"first": times[0], "call": statistics.median(times[1:-1])}
    return found | ({"choosing": chosen[0], "swapping": times[-1]} if chosen else {})


def turns(args: argparse.Namespace) -> dict[str, float]:
    """Both in one process, once the smaller graph is there."""
    import logging

    import torch

    import toastc

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("toastc").addHandler(handler)
    logging.getLogger("toastc").setLevel(logging.INFO)
    model, images = model_and_images(args)
    small = torch.compile(model, backend=toastc.backend, options=options_of(args), dynamic=False)
    with torch.no_grad():
        for part in images.split(args.batch):
            small(part)
        torch._dynamo.reset_code_caches()
        dense = torch.compile(lambda x: model(x), backend="inductor", dynamic=False)
        x = images[: args.batch]
        runs: dict[str, list[float]] = {"dense": [], "small": []}
        for n in range(args.calls + 2):
            for name, run in (("dense", dense), ("small", small)):
                start = time.perf_counter()
                run(x)
                if n > 1:
                    runs[name].append(time.perf_counter() - start)
    line = next(text for text in said if "of the MACs left" in text)
    left = int(re.search(r"(\d+) % of the MACs left", line)[1]) / 100  # type: ignore[index]
    return {name: statistics.median(each) for name, each in runs.items()} | {"left": left}


def child(args: argparse.Namespace, backend: str) -> dict[str, float]:
    own = [
        f"--{name}={getattr(args, name)}"
        for name in ("model", "words", "batch", "target", "observe", "weights", "inputs", "calls")
    ]
    env = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "TOASTC_CACHE": "off"}
    done = subprocess.run(
        [sys.executable, __file__, *own, "--backend", backend], capture_output=True, text=True, check=True, env=env
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def shown(rows: list[dict[str, float]], key: str) -> str:
    each = [row[key] for row in rows]
    return f"{statistics.median(each):.2f} s ({min(each):.2f} to {max(each):.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="deit_base_patch16_224")
    parser.add_argument("--words", default="{}", help="of timm.create_model, as JSON")
    parser.add_argument("--weights", default="", help="a state dict")
    parser.add_argument("--inputs", default="", help="images, as .npy")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--target", default="macs=0.6")
    parser.add_argument("--observe", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--backend", choices=("inductor", "toastc", "turns"))
    args = parser.parse_args()
    if args.backend:
        print(json.dumps(turns(args) if args.backend == "turns" else first(args)))
        return 0
    rows: dict[str, list[dict[str, float]]] = {"inductor": [], "toastc": []}
    for _ in range(args.repeats):
        for backend, found in rows.items():
            found.append(child(args, backend))
    middle = {backend: {key: statistics.median(r[key] for r in found) for key in found[0]} for backend, found in rows.items()}
    print(f"{args.model}, batch {args.batch}, {args.target}, {args.observe} inputs observed; medians of {args.repeats} (ranges)")
    for what, key in (("the first call", "first"), ("a call while it is observed", "call")):
        ratio = middle["toastc"][key] / middle["inductor"][key]
        print(f"{what}: {shown(rows['toastc'], key)}, inductor alone {shown(rows['inductor'], key)}: {ratio:.2f} times")
    print(
        f"choosing: {shown(rows['toastc'], 'choosing')}; the call that swaps, with inductor: {shown(rows['toastc'], 'swapping')}"
    )
    both = child(args, "turns")
    gain, ideal = both["dense"] / both["small"], 1 / both["left"]
    print(
        f"then {1000 * both['small']:.1f} ms a call, inductor alone {1000 * both['dense']:.1f} ms: {gain:.2f} times as fast; "
        f"{both['left']:.2f} of the MACs are left, which promise {ideal:.2f}: {100 * gain / ideal:.0f} %"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
