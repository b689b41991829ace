"""What `backend="toastc"` adds to the compile time of inductor alone.

    python tools/bench_backend.py [--model deit_base_patch16_224] [--repeats 3]

Every measurement is a fresh process with inductor's caches off; the two take turns. Time is from the first call of the
compiled model to its return; "toastc's own share" is what its passes took inside that call.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def child(model: str, backend: str) -> None:
    import timm
    import torch

    from toastc.compiler.sources import dynamo

    own = 0.0
    cut, unpacked = dynamo.cut, dynamo.unpacked

    def timed(function):
        def run(*args):
            nonlocal own
            start = time.perf_counter()
            result = function(*args)
            own += time.perf_counter() - start
            return result

        return run

    dynamo.cut, dynamo.unpacked = timed(cut), timed(unpacked)
    net = timm.create_model(model).eval()
    x = torch.randn(1, 3, 224, 224)
    options = {"ratios": {"attention": 0.5, "ffn": 0.5}} if backend == "toastc" else None
    compiled = torch.compile(net, backend=dynamo.backend if backend == "toastc" else "inductor", options=options)
    with torch.no_grad():
        start = time.perf_counter()
        compiled(x)
    print(json.dumps({"seconds": time.perf_counter() - start, "own": own}))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="deit_base_patch16_224")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", choices=("inductor", "toastc"))
    args = parser.parse_args()
    if args.child:
        child(args.model, args.child)
        return 0
    times: dict[str, list[dict[str, float]]] = {"inductor": [], "toastc": []}
    for _ in range(args.repeats):
        for backend, rows in times.items():
            command = [sys.executable, __file__, "--model", args.model, "--child", backend]
            env = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    for backend, rows in times.items():
        seconds = [r["seconds"] for r in rows]
        own = statistics.median(r["own"] for r in rows)
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        print(f"{backend:9} median {statistics.median(seconds):.1f} s ({spread}); toastc's own share {own:.2f} s")
    ratio = statistics.median(r["seconds"] for r in times["toastc"]) / statistics.median(r["seconds"] for r in times["inductor"])
    print(f"toastc takes {ratio:.2f} times what inductor alone takes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
