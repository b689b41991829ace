"""What compiling costs: wall time and peak memory of toastc on ViT-B, ViT-L and ViT-H, beside cp and Torch-Pruning.

    python tools/bench_compile.py [--models B,L,H] [--repeats 3] [--keep FOLDER] [--out benchmarks/compile-cpu.json]

Random weights, no data, every width halved (qk, vo, ffn). One table and one JSON file; per model, in turns:

    cp            cp of the input file(s) into the folder toastc writes to, then fsync; toastc fsyncs its output too
    toastc        toastc MODEL.onnx -o OUT.onnx --ratios r.json --no-verify --quiet --json
    toastc+verify the same with verification
    inspect       toastc inspect MODEL.onnx --quiet
    torch-pruning MetaPruner as in its examples/transformers/prune_timm_vit.py --bottleneck: L2, heads kept, head dims
                  and FFN halved; the time is graph build + prune with the weights in memory, the memory is the process's

Everything is a fresh process: the time is from start to exit (torch-pruning times itself), the memory is ru_maxrss,
which counts mapped pages of the input file as well. A child inherits its parent's peak on Linux, so nothing heavy is
imported here. Before each measurement dirty pages are written back and the input is read into the page cache once.
The matcher's own time comes from the "seconds" of `toastc --json`; `toastc --help` is the median of ten runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
MODELS = {"B": "vit_base_patch16_224", "L": "vit_large_patch16_224", "H": "vit_huge_patch14_224"}
RATIOS = {"attention": {"qk": 0.5, "vo": 0.5}, "ffn": 0.5}
TOASTC = [str(Path(sys.executable).with_name("toastc"))]
INLINE_LIMIT = 1 << 30  # bytes of weights; larger models get a file of their own for them
PACKAGES = ("torch", "timm", "onnx", "onnx-ir", "onnxruntime", "torch-pruning", "numpy")
# Run toastc inside `python -c` with these arguments, then say which frameworks it imported.
IMPORTED = "import sys; from toastc.cli import main; code = main(sys.argv[1:]); print(*sys.modules, sep='\\n'); sys.exit(code)"

console = Console(highlight=False)


@dataclass(frozen=True)
class Sample:
    """One process: seconds from start to exit, ru_maxrss in bytes, and what it printed."""

    seconds: float
    peak: int
    stdout: str


def measure(command: Sequence[str]) -> Sample:
    """Run one command to its end; a failure of it ends the benchmark."""
    with tempfile.TemporaryFile("w+") as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
        out.seek(0)
        return Sample(seconds, usage.ru_maxrss * 1024, out.read())


def child(what: str, *arguments: str) -> Sample:
    return measure([sys.executable, __file__, "--child", what, *arguments])


# ---- what runs in child processes of its own, so that torch stays out of this one -------------------------------


def random_vit(name: str) -> Any:
    """A timm ViT of random weights in which no parameter is constant, so that no score ties and no output is zero."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.min() == parameter.max():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def export(name: str, path: str) -> None:
    """Write the model as ONNX by the dynamo exporter: opset 20, dynamic batch."""
    import torch

    model = random_vit(name)
    external = sum(p.numel() * p.element_size() for p in model.parameters()) > INLINE_LIMIT
    torch.onnx.export(
        model, (torch.zeros(2, 3, 224, 224),), path, dynamo=True, opset_version=20, external_data=external, verbose=False,
        input_names=["image"], output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip


def torch_pruning(name: str) -> None:
    """Halve head dims and FFNs by Torch-Pruning; prints the seconds it took and what it left, as JSON."""
    import torch
    import torch_pruning as tp
    from timm.layers import Attention, Mlp

    def forward(self: Any, x: Any, **_: Any) -> Any:
        """timm's attention, whose output may be of another width than its input."""
        shape = (*x.shape[:2], 3, self.num_heads, self.head_dim)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        x = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(*shape[:2], -1))

    model, image = random_vit(name), torch.randn(1, 3, 224, 224)
    attentions = [m for m in model.modules() if isinstance(m, Attention)]
    for m in attentions:
        m.forward = forward.__get__(m)
    start = time.perf_counter()
    pruner = tp.pruner.MetaPruner(
        model, image, importance=tp.importance.GroupNormImportance(p=2), global_pruning=False, pruning_ratio=0.5, round_to=2,
        ignored_layers=[model.head, *(m.fc2 for m in model.modules() if isinstance(m, Mlp))],
        num_heads={m.qkv: m.num_heads for m in attentions}, prune_num_heads=False, prune_head_dims=True,
    )  # fmt: skip
    built = time.perf_counter()
    for group in pruner.step(interactive=True):
        group.prune()
    for m in attentions:
        m.num_heads = pruner.num_heads[m.qkv]
        m.head_dim = m.qkv.out_features // (3 * m.num_heads)
    done = time.perf_counter()
    with torch.no_grad():
        assert model(image).shape == (1, 1000), "the pruned model does not run"
    params = sum(p.numel() for p in model.parameters())
    print(json.dumps({"seconds": done - start, "build": built - start, "prune": done - built, "params": params}))


CHILDREN: dict[str, Callable[..., None]] = {"export": export, "torch-pruning": torch_pruning}


# ---- measuring --------------------------------------------------------------------------------------------------


def files_of(model: Path) -> list[Path]:
    """The ONNX file and, where there is one, its external data."""
    return [p for p in (model, model.with_name(f"{model.name}.data")) if p.exists()]


def size_of(model: Path) -> int:
    return sum(p.stat().st_size for p in files_of(model))


def exported(letter: str, folder: Path) -> Path:
    """The model's ONNX file in the folder, exported if it is not there yet."""
    path = folder / f"{MODELS[letter]}.onnx"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch, console.status(f"exporting {path.name}"):
            child("export", MODELS[letter], str(Path(scratch) / path.name))
            for file in reversed(files_of(Path(scratch) / path.name)):
                file.rename(folder / file.name)
    return path


def copy(model: Path, folder: Path) -> dict[str, float]:
    """cp, then fsync of the copies. `-` tells the time without the fsync."""
    made = [folder / f"copy{''.join(p.suffixes)}" for p in files_of(model)]
    start = time.perf_counter()
    for source, target in zip(files_of(model), made, strict=True):
        subprocess.run(["cp", "--reflink=never", "--sparse=never", str(source), str(target)], check=True)
    copied = time.perf_counter()
    for target in made:
        with open(target, "rb") as file:
            os.fsync(file.fileno())
    return {"seconds": time.perf_counter() - start, "without_fsync": copied - start}


def compile_once(model: Path, folder: Path, *options: str) -> dict[str, Any]:
    ratios = folder / "ratios.json"
    ratios.write_text(json.dumps(RATIOS))
    output = folder / "small.onnx"
    sample = measure([*TOASTC, str(model), "-o", str(output), "--ratios", str(ratios), "--quiet", "--json", *options])
    report = json.loads(sample.stdout)
    return {
        "seconds": sample.seconds, "peak": sample.peak, "stages": report["seconds"], "verified": report["verified"],
        "output_bytes": size_of(output), "params": report["after"]["params"],
    }  # fmt: skip


def inspect(model: Path) -> dict[str, Any]:
    sample = measure([*TOASTC, "inspect", str(model), "--quiet"])
    return {"seconds": sample.seconds, "peak": sample.peak}


def prune_by_torch_pruning(letter: str) -> dict[str, Any]:
    sample = child("torch-pruning", MODELS[letter])
    return json.loads(sample.stdout.splitlines()[-1]) | {"peak": sample.peak, "process_seconds": sample.seconds}


@contextlib.contextmanager
def prepared(model: Path, folder: Path) -> Iterator[Path]:
    """An empty folder beside the model, nothing waiting to be written, the model in the page cache."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        os.sync()
        for path in files_of(model):
            with open(path, "rb", buffering=0) as file:
                while file.read(1 << 22):
                    pass
        yield Path(scratch)


def measure_all(letters: Sequence[str], repeats: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Every contender on every model, in turns; a model's `runs[contender]` is a list of one entry a repeat."""
    found: dict[str, dict[str, Any]] = {}
    for letter in letters:
        found[letter] = {"model": MODELS[letter], "input_bytes": size_of(exported(letter, folder)), "runs": {}}
    for turn in range(repeats):
        for letter in letters:
            model = exported(letter, folder)
            contenders: dict[str, Callable[[Path], dict[str, Any]]] = {
                "cp": lambda to, model=model: copy(model, to),
                "toastc": lambda to, model=model: compile_once(model, to, "--no-verify"),
                "toastc+verify": lambda to, model=model: compile_once(model, to),
                "inspect": lambda to, model=model: inspect(model),
                "torch-pruning": lambda to, letter=letter: prune_by_torch_pruning(letter),
            }
            for name, run in contenders.items():
                with console.status(f"turn {turn + 1} of {repeats}: ViT-{letter}, {name}"), prepared(model, folder) as to:
                    found[letter]["runs"].setdefault(name, []).append(run(to))
    return found


def help_seconds(runs: int = 10) -> list[float]:
    measure([*TOASTC, "--help"])  # the first one may have to compile bytecode
    return [measure([*TOASTC, "--help"]).seconds for _ in range(runs)]


def torch_free(model: Path, folder: Path) -> dict[str, bool]:
    """Was torch absent from sys.modules after a compile without and with verification?"""
    found = {}
    for what, options in (("no-verify", ["--no-verify"]), ("verify", [])):
        with prepared(model, folder) as to:
            (to / "r.json").write_text(json.dumps(RATIOS))
            arguments = [str(model), "-o", str(to / "small.onnx"), "--ratios", str(to / "r.json"), "--quiet", *options]
            found[what] = "torch" not in measure([sys.executable, "-c", IMPORTED, *arguments]).stdout.split()
    return found


# ---- what is printed --------------------------------------------------------------------------------------------


def median(runs: Sequence[dict[str, Any]], key: str) -> float:
    return float(statistics.median(run[key] for run in runs))


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [dim]({min(values):.2f} to {max(values):.2f})[/]"


def costs(found: dict[str, dict[str, Any]]) -> Table:
    """One row a contender: the median and the range of its seconds, and its median peak memory."""
    table = Table(title="half of every width; medians (range), input in the page cache, fsync of the output included")
    for heading in ("model", "what", "seconds", "x cp", "peak MB", "x input", "matcher s"):
        table.add_column(heading, justify="left" if heading in ("model", "what") else "right")
    for letter, case in found.items():
        by_cp = median(case["runs"]["cp"], "seconds")
        for name, runs in case["runs"].items():
            seconds, label = median(runs, "seconds"), f"ViT-{letter}, {case['input_bytes'] / 1e6:,.0f} MB" if name == "cp" else ""
            row = [label, name, spread([r["seconds"] for r in runs]), f"{seconds / by_cp:.2f}"]
            if name != "cp":
                peak = median(runs, "peak")
                row += [f"{peak / 1e6:,.0f}", f"{peak / case['input_bytes']:.2f}"]
            if "stages" in runs[0]:
                row.append(spread([r["stages"]["match-sites"] for r in runs]))
            table.add_row(*row, end_section=name == "torch-pruning")
    return table


def targets(found: dict[str, dict[str, Any]], helps: Sequence[float]) -> dict[str, tuple[float, float]]:
    """What is aimed at on the largest model measured: (measured, wanted at most)."""
    letter, case = list(found.items())[-1]
    runs, size, base = case["runs"], case["input_bytes"], min(r["peak"] for r in case["runs"]["inspect"])
    matching = statistics.median(r["stages"]["match-sites"] for r in runs["toastc"])
    return {
        f"ViT-{letter}, no verification: time / cp": (median(runs["toastc"], "seconds") / median(runs["cp"], "seconds"), 2.0),
        f"ViT-{letter}, no verification: peak / input": (median(runs["toastc"], "peak") / size, 1.0),
        f"ViT-{letter}, verification: (peak - peak of inspect) / input": ((median(runs["toastc+verify"], "peak") - base) / size, 1.0),
        f"ViT-{letter}, matcher, seconds": (matching, 2.0),
        "toastc --help, seconds": (statistics.median(helps), 0.3),
    }


def machine() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "cpus": os.cpu_count(), "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "load": os.getloadavg(),
        "platform": platform.platform(), "python": platform.python_version(), "commit": commit,
        "packages": {name: version(name) for name in PACKAGES},
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS), metavar="B,L,H")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the exported ONNX files here, for the next time")
    parser.add_argument("--out", type=Path, metavar="JSON", default=ROOT / "benchmarks" / "compile-cpu.json")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        CHILDREN[args.child[0]](*args.child[1:])
        return 0
    if unknown := set(args.models) - set(MODELS):
        parser.error(f"--models: {', '.join(sorted(unknown))} is not one of {', '.join(MODELS)}")
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-compile-")))
        folder.mkdir(parents=True, exist_ok=True)
        about, helps = machine(), help_seconds()
        found = measure_all(args.models, args.repeats, folder)
        free = torch_free(exported(args.models[0], folder), folder)
    wanted = targets(found, helps)
    console.print(costs(found))
    for what, (got, limit) in wanted.items():
        console.print(f"{'[green]met   [/]' if got <= limit else '[red]missed[/]'} {what}: {got:.2f}, wanted at most {limit:g}")
    console.print(f"torch imported on the ONNX path: {', '.join(f'{k}: {not v}' for k, v in free.items())}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "machine": about, "ratios": RATIOS, "page_cache": "warm", "fsync": "included in cp and toastc", "parent_peak": peak,
        "models": found, "help_seconds": helps, "torch_absent": free, "targets": wanted,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
