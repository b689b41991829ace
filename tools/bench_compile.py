"""What compiling costs: wall time and peak memory of toastc on ViT-B, ViT-L and ViT-H, beside cp and Torch-Pruning.

    python tools/bench_compile.py [--models B,L,H] [--repeats 3] [--keep FOLDER] [--out benchmarks/compile-cpu.json]

Random weights, no data, every width halved (qk, vo, ffn). Prints a table and the targets, met or missed; writes every
measurement as JSON. Per model, taking turns, everything in a fresh process:

    cp             cp of the input file(s) into the folder toastc writes to, then fsync; toastc fsyncs its output too
    toastc         toastc MODEL.onnx -o OUT.onnx --ratios r.json --recipe magnitude --no-verify --quiet --json
    toastc+verify  the same with verification
    inspect        toastc inspect MODEL.onnx --quiet
    torch-pruning  MetaPruner as in its examples/transformers/prune_timm_vit.py --bottleneck: L2, heads kept, head dims
                   and FFN halved; the time is graph build + prune with the weights in memory, the peak the process's

Times are from start to exit (torch-pruning times itself), the peak is ru_maxrss, mapped pages of files included; a child
inherits its parent's, so nothing heavy is imported here. Before each measurement dirty pages are written back and the
input is read once: everybody reads from the page cache. The matcher's time is from toastc's own "seconds".
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
MODELS = {"B": "vit_base_patch16_224", "L": "vit_large_patch16_224", "H": "vit_huge_patch14_224"}
RATIOS = {"attention": {"qk": 0.5, "vo": 0.5}, "ffn": 0.5}
TOASTC = str(Path(sys.executable).with_name("toastc"))
COPY = 'to=$1; shift; cp --reflink=never --sparse=never "$@" "$to" && sync "$to"/*'  # sync FILE is fsync
LIBRARIES = "import onnx_ir, onnx.reference, onnxruntime"  # what toastc imports; their memory is not the model's
IMPORTED = "import sys; from toastc.cli import main; code = main(sys.argv[1:]); print(*sys.modules); sys.exit(code)"
Run = dict[str, Any]  # "seconds", "cpu" seconds, "peak" in bytes, and what else there is to tell


def random_vit(name: str) -> Any:
    """A timm ViT in which no parameter is constant, so that no two scores are equal and no output is zero."""
    import timm  # as torch, only in processes of its own
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1000).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.min() == parameter.max():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def export(name: str, path: str) -> None:
    """Write the model as ONNX by the dynamo exporter; the larger ones keep their weights in a file beside it."""
    import torch

    torch.onnx.export(
        random_vit(name), (torch.zeros(2, 3, 224, 224),), path, dynamo=True, opset_version=20, verbose=False,
        external_data="base" not in name, input_names=["image"], dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip


def torch_pruning(name: str) -> None:
    """Halve head dims and FFNs by Torch-Pruning; prints what it took and what it left, as JSON."""
    import torch
    import torch_pruning as tp
    from timm.layers import Attention, Mlp

    model, image = random_vit(name), torch.randn(1, 3, 224, 224)
    attentions, ffns = ([m for m in model.modules() if isinstance(m, kind)] for kind in (Attention, Mlp))
    start, used = time.perf_counter(), time.process_time()
    pruner = tp.pruner.MetaPruner(
        model, image, importance=tp.importance.GroupMagnitudeImportance(p=2), global_pruning=False, pruning_ratio=0.5, round_to=2,
        ignored_layers=[model.head, *(m.fc2 for m in ffns)], num_heads={m.qkv: m.num_heads for m in attentions},
    )  # fmt: skip
    built = time.perf_counter()
    for group in pruner.step(interactive=True):
        group.prune()
    for m in attentions:
        m.attn_dim = m.qkv.out_features // 3
        m.head_dim = m.attn_dim // m.num_heads
    took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - used, "build": built - start}
    assert model(image).shape == (1, 1000), "the pruned model does not run"
    print(json.dumps(took | {"params": sum(p.numel() for p in model.parameters())}))


def measure(*command: str | Path) -> Run:
    """Run one command to its end; a failure of it ends the benchmark."""
    with tempfile.TemporaryFile("w+") as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"exit code {process.returncode}: {' '.join(map(str, command))}")
        out.seek(0)
        cpu = usage.ru_utime + usage.ru_stime
        return {"seconds": seconds, "cpu": cpu, "peak": usage.ru_maxrss * 1024, "stdout": out.read()}


def files_of(model: Path) -> list[Path]:
    return [p for p in (model, model.with_name(f"{model.name}.data")) if p.exists()]


def exported(letter: str, folder: Path) -> Path:
    """The model's ONNX file in the folder, exported if it is not there yet."""
    path = folder / f"{MODELS[letter]}.onnx"
    if not path.exists():
        measure(sys.executable, __file__, "--child", "export", MODELS[letter], path)
    return path


@contextlib.contextmanager
def prepared(model: Path) -> Iterator[Path]:
    """An empty folder beside the model, nothing waiting to be written, the model in the page cache."""
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        os.sync()
        for path in files_of(model):
            with open(path, "rb", buffering=0) as file:
                while file.read(1 << 22):
                    pass
        yield Path(folder)


def arguments(model: Path, folder: Path, *options: str) -> list[str | Path]:
    (folder / "ratios.json").write_text(json.dumps(RATIOS))
    return [model, "-o", folder / "small.onnx", "--ratios", folder / "ratios.json", "--recipe", "magnitude", "--quiet", *options]


def compile_once(model: Path, folder: Path, *options: str) -> Run:
    run = measure(TOASTC, *arguments(model, folder, "--json", *options))
    report = json.loads(run.pop("stdout"))
    return run | {"stages": report["seconds"], "verified": report["verified"], "after": report["after"]}


def prune_by_torch_pruning(model: Path, folder: Path) -> Run:
    run = measure(sys.executable, "-W", "ignore", __file__, "--child", "torch-pruning", model.stem)
    return run | json.loads(run.pop("stdout"))


CONTENDERS: dict[str, Callable[[Path, Path], Run]] = {
    "cp": lambda model, folder: measure("sh", "-c", COPY, "sh", folder, *files_of(model)),
    "toastc": lambda model, folder: compile_once(model, folder, "--no-verify"),
    "toastc+verify": compile_once,
    "inspect": lambda model, folder: measure(TOASTC, "inspect", model, "--quiet"),
    "torch-pruning": prune_by_torch_pruning,
}


def measure_all(models: dict[str, Path], turns: int) -> dict[str, Any]:
    """Every contender on every model, in turns; `runs[contender]` of a model has one entry a turn."""
    found: dict[str, Any] = {}
    for turn, (letter, model), name in product(range(turns), models.items(), CONTENDERS):
        case = found.setdefault(letter, {"model": model.stem, "input": sum(map(os.path.getsize, files_of(model))), "runs": {}})
        with prepared(model) as folder:
            run = CONTENDERS[name](model, folder)
        case["runs"].setdefault(name, []).append(run)
        print(f"turn {turn + 1} of {turns}, ViT-{letter}, {name}: {run['seconds']:.2f} s", file=sys.stderr, flush=True)
    return found


def middle(runs: Sequence[Run], key: str) -> float:
    return float(median(run[key] for run in runs))


def ranged(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def costs(found: dict[str, Any]) -> Table:
    table = Table(title="Every width halved: medians (ranges), warm page cache, fsync of what is written included")
    for heading in ("", "seconds", "x cp", "CPU seconds", "peak MB", "x input", "matcher, seconds"):
        table.add_column(heading, justify="right" if heading else "left")
    for letter, case in found.items():
        table.add_row(f"ViT-{letter}: {case['input'] / 1e6:,.0f} MB", style="bold")
        for name, runs in case["runs"].items():
            peak, by_cp = middle(runs, "peak"), middle(runs, "seconds") / middle(case["runs"]["cp"], "seconds")
            row = [f"{by_cp:.1f}", f"{middle(runs, 'cpu'):.2f}", f"{peak / 1e6:,.0f}", f"{peak / case['input']:.2f}"]
            row.append(ranged([r["stages"]["match-sites"] for r in runs]) if "stages" in runs[0] else "")
            table.add_row(f"  {name}", ranged([r["seconds"] for r in runs]), *row)
    return table


def targets(case: dict[str, Any], helps: Sequence[float], libraries: int) -> dict[str, tuple[float, float]]:
    """Of one model: what was measured, and what it should be at most."""
    quick, full, size = case["runs"]["toastc"], case["runs"]["toastc+verify"], case["input"]
    return {
        "without verification, time / cp": (middle(quick, "seconds") / middle(case["runs"]["cp"], "seconds"), 2.0),
        "without verification, peak / input": (middle(quick, "peak") / size, 1.0),
        "with verification, (peak - libraries) / input": ((middle(full, "peak") - libraries) / size, 1.0),
        "matcher, seconds": (median(r["stages"]["match-sites"] for r in quick), 2.0),
        "toastc --help, seconds": (median(helps), 0.3),
    }


def machine() -> dict[str, Any]:
    commit = subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True).strip()
    installed = {name: version(name) for name in ("torch", "timm", "onnx-ir", "onnxruntime", "torch-pruning", "numpy")}
    return {"commit": commit, "cpus": os.cpu_count(), "load": os.getloadavg(), "on": platform.platform(), "packages": installed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS), metavar="B,L,H")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the exported ONNX files here, for the next time")
    parser.add_argument("--out", type=Path, metavar="JSON", default=ROOT / "benchmarks" / "compile-cpu.json")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        export(*args.child[1:]) if args.child[0] == "export" else torch_pruning(*args.child[1:])
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-compile-") as scratch:
        folder = (args.keep or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        models = {letter: exported(letter, folder) for letter in args.models}
        about, helps = machine(), [measure(TOASTC, "--help")["seconds"] for _ in range(11)][1:]
        libraries = measure(sys.executable, "-c", LIBRARIES)["peak"]
        with prepared(first := models[args.models[0]]) as to:
            modules = measure(sys.executable, "-c", IMPORTED, *arguments(first, to))["stdout"].split()
        found = measure_all(models, args.repeats)
    wanted = targets(found[args.models[-1]], helps, libraries)
    console = Console(highlight=False, width=120)
    console.print(costs(found))
    console.print(f"The libraries alone take {libraries / 1e6:,.0f} MB. Targets, on ViT-{args.models[-1]}:")
    for what, (got, limit) in wanted.items():
        console.print(f"  {'met   ' if got <= limit else 'MISSED'} {what}: {got:.2f}, at most {limit:g}")
    console.print(f"A compile of ONNX to ONNX imports torch: {'torch' in modules}")
    result = {"machine": about, "ratios": RATIOS, "page_cache": "warm", "fsync": "included in cp and toastc", "targets": wanted}
    result |= {"libraries_peak": libraries, "help_seconds": helps, "torch_imported": "torch" in modules, "models": found}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
