"""The words of the command: its options, their types and their help."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..plans.targets import DTYPES, QUANTIZED, RUNTIMES

PRUNE_HELP = """Make a Vision Transformer smaller without retraining.

  toastc MODEL.onnx -o OUT.onnx --ratios r.json     prune by a ratio file and prove the result
  toastc MODEL.onnx -o OUT.onnx --target macs=0.6 --calibrate photos/
                                                    keep 60 % of the MACs, where it hurts least
  toastc inspect MODEL.onnx                         what can be shrunk, and why the rest can not
  toastc verify DENSE.onnx PRUNED.onnx              pad the pruned weights back and compare
  toastc bench DENSE.onnx PRUNED.onnx --batch 1,8   time both, taking turns
  toastc kernels MODEL.onnx                         which kernels its attentions get on a GPU
  toastc calibrate MODEL.onnx photos/ -o m.safetensors
                                                    measure once, for any number of budgets
  toastc report r.json -o r.html                    a page of a saved report, a plan or a model
  toastc compare a.json b.json -o pareto.html       several of them on one page
"""

RATIOS_HELP = """example ratio file (every number is the fraction removed):
  {"attention": {"qk": 0.5, "vo": 0.5, "heads": 0.0}, "ffn": 0.5, "sites": {"blocks.0.*": 0}, "round_to": 8}
recipes: default (calibrated with data, synthetic images without), magnitude and others that need no data: geometric-median, svd;
  published methods: toast, toast-image, toast-batch, vbp, corp

exit: 0 done and verified; 1 verification failed, or nothing could be pruned; 2 bad usage or bad input; 130 interrupted
"""

CALIBRATE_HELP = """Measure a model on calibration data once, for any number of budgets.

  toastc calibrate MODEL.onnx photos/ -o m.safetensors
  torchrun --nproc-per-node 4 -m toastc.calibrate MODEL.onnx photos/ -o m.safetensors    the same, shared by 4 processes

Stopped and asked again, it goes on where it was: what it has seen is kept in m.safetensors.part (not under torchrun).
  toastc MODEL.onnx -o OUT.onnx --target macs=0.6 --moments m.safetensors
"""
REPORT_HELP = """Make a page of a saved report, a plan or a model, with speed and accuracy where they were measured.

  toastc MODEL.onnx -o OUT.onnx --target macs=0.6 --calibrate photos/ --json > r.json
  toastc bench MODEL.onnx OUT.onnx --json > b.json
  toastc report r.json --bench b.json -o r.html
  toastc report OUT.onnx -o out.html                      what a file says of itself
"""
COMPARE_HELP = """Put saved reports on one page: MACs, parameters and time against the error of the outputs, or accuracy.

  toastc compare r60.json r50.json vbp.html -o pareto.html
"""
LOOKING = {  # commands that look at files: what for, an example, the files
    "inspect": ("Show every attention and FFN, and what can be cut.", "model.onnx --json", ("model",)),
    "kernels": (
        "Which kernel every attention gets on a GPU, by its sizes: ONNX Runtime CUDA, torch, TensorRT.",
        "pruned.onnx --json      (also what the next faster one would cost)",
        ("model",),
    ),
    "verify": (
        "Zero-fill the pruned weights to their original shapes, run them in the dense graph, compare.",
        "dense.onnx pruned.onnx",
        ("dense", "pruned"),
    ),
    "bench": ("Time two models on ONNX Runtime, taking turns.", "dense.onnx pruned.onnx --batch 1,8,64", ("dense", "pruned")),
}
COMMANDS = ("prune", "calibrate", "report", "compare", *LOOKING)
DATA_HELP = "a folder of images, or .npy, .npz, .safetensors of ready inputs"


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="or timm:NAME, hf:NAME, hf:FOLDER: exported first")
    parser.add_argument("--weights", metavar="W.safetensors", help="of a model given by name, instead of its own; or random")


def add_data_options(group: Any) -> None:
    group.add_argument("--images", type=counted, metavar="N", help="use that many of them (default: all)")
    group.add_argument("--size", type=counted, help="images: pixels a side (default: the model's, else 224)")
    group.add_argument("--crop", type=share, help="images: the middle share that is kept (0.875)")
    group.add_argument("--mean", type=numbers, metavar="R,G,B", help="images: ImageNet's by default")
    group.add_argument("--std", type=numbers, metavar="R,G,B", help="images: ImageNet's by default")
    group.add_argument(
        "--provider", choices=("cpu", "cuda"), default="cpu", help="where the model runs while it is watched (cpu)"
    )


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        say(f"{message} (see {self.prog} --help)")
        raise SystemExit(2)


def say(message: str) -> None:
    """One line on stderr, whatever is in the names it speaks of."""
    line = " ".join(message.split())
    print("toastc: " + "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)


def parser_for(command: str) -> Parser:
    raw = argparse.RawDescriptionHelpFormatter
    if command == "prune":
        p = Parser("toastc", description=PRUNE_HELP, epilog=RATIOS_HELP, formatter_class=raw)
        p.add_argument("--version", action="version", version=f"toastc {__version__}")
        add_model(p)
        p.add_argument("-o", "--output", type=Path, metavar="OUT.onnx", help="where to write the smaller model")
        what = p.add_mutually_exclusive_group()
        what.add_argument("--ratios", type=Path, metavar="R.json", help="how much of every coupling to remove")
        what.add_argument("--target", metavar="macs=0.6", help="share of the MACs (or params, or latency) to keep")
        what.add_argument("--plan", type=Path, metavar="P.safetensors", help="replay a plan written by --plan-out")
        p.add_argument("--tokens", metavar="h4,v8", help="merge tokens: horizontally before block 4, vertically before block 8")
        p.add_argument(
            "--allow", metavar="channels,tokens", help="what meets a target in MACs (channels, and tokens nobody reads)"
        )
        p.add_argument("--batch", type=counted, default=1, metavar="N", help="the batch size of a latency target (1)")
        p.add_argument("--search", type=minutes, metavar="MINUTES", help="refine the widths by measuring the pruned model")
        deploy = p.add_argument_group("where it will run", "changed after the proof, and compared with what was proven")
        deploy.add_argument(
            "--for", dest="runtime", choices=RUNTIMES, default="portable", help="fused nodes for ONNX Runtime, ... (portable)"
        )
        deploy.add_argument("--dtype", choices=DTYPES, help="weights and arithmetic; inputs and outputs keep their type")
        deploy.add_argument("--quantize", choices=QUANTIZED, help="linears in 8 bits, by the calibration data")
        data = p.add_argument_group(
            "calibration data", "what the model does on it decides what stays, and makes up for what goes"
        )
        data.add_argument("--calibrate", metavar="DATA", help=DATA_HELP)
        add_data_options(data)
        data.add_argument("--moments", type=Path, metavar="M.safetensors", help="instead of data: what --moments-out wrote")
        data.add_argument("--moments-out", type=Path, metavar="M.safetensors", help="also save what was measured")
        p.add_argument("--ratios-out", type=Path, metavar="R.json", help="also save the ratios that were chosen")
        p.add_argument("--recipe", default="default", metavar="NAME", help="default, magnitude, toast, ... (README, docs)")
        p.add_argument("--passes", metavar="P,Q", help='spell the recipe: "score-weights{by=geometric-median},plan-ratios"')
        p.add_argument("--plan-out", type=Path, metavar="P.safetensors", help="also save the plan")
        p.add_argument("--report", type=Path, metavar="OUT.html", help="also save the report as a page")
        p.add_argument("--dry-run", action="store_true", help="plan and report, write no model")
        p.add_argument("--no-verify", action="store_true", help="skip the proof")
    elif command == "calibrate":
        p = Parser("toastc calibrate", description=CALIBRATE_HELP, formatter_class=raw)
        add_model(p)
        p.add_argument("data", metavar="DATA", help=DATA_HELP)
        p.add_argument(
            "-o", "--output", type=Path, metavar="M.safetensors", required=True, help="where to save what was measured"
        )
        add_data_options(p)
    elif command == "report":
        p = Parser("toastc report", description=REPORT_HELP, formatter_class=raw)
        p.add_argument("source", type=Path, metavar="SOURCE", help="r.json, r.html, plan.safetensors or model.onnx")
        p.add_argument("--bench", type=Path, metavar="B.json", help="also show what `toastc bench --json` printed")
        p.add_argument("--accuracy", type=Path, metavar="A.json", help="also show what tools/eval_imagenet.py --json printed")
        p.add_argument("-o", "--output", type=Path, metavar="OUT.html", required=True, help="where to write the page")
    elif command == "compare":
        p = Parser("toastc compare", description=COMPARE_HELP, formatter_class=raw)
        p.add_argument("sources", type=Path, nargs="+", metavar="R.json", help="reports: JSON or pages")
        p.add_argument("-o", "--output", type=Path, metavar="OUT.html", required=True, help="where to write the page")
    else:
        description, example, files = LOOKING[command]
        p = Parser(
            f"toastc {command}", description=description, formatter_class=raw, epilog=f"example: toastc {command} {example}"
        )
        for name in files:
            p.add_argument(name, type=Path, metavar=f"{name.upper()}.onnx")
    if command == "bench":
        p.add_argument("--provider", choices=("cpu", "cuda", "tensorrt"), default="cpu", help="of ONNX Runtime (cpu)")
        p.add_argument(
            "--option",
            type=option,
            action="append",
            metavar="K=V",
            help="of the provider: trt_fp16_enable=1, ...",
        )
        p.add_argument("--no-memory", action="store_true", help="do not measure peak memory, which takes processes of their own")
        p.add_argument("--batch", type=batch_sizes, default=(1, 8), metavar="1,8,64", help="the batch sizes (1,8)")
        p.add_argument("--threads", type=whole, default=0, help="0: as many as ONNX Runtime likes")
        p.add_argument("--seconds", type=duration, default=3.0, help="time spent on each batch size (3)")
    if command in ("prune", "calibrate", "verify"):
        p.add_argument("--seed", type=whole, default=0, help="of whatever is drawn at random (0)")
    p.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    p.add_argument("--quiet", action="store_true", help="no progress, no tables")
    return p


def batch_sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) for part in text.split(","))
    if not sizes or min(sizes) < 1:
        raise ValueError(text)
    return sizes


def option(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ValueError(text)
    return key, value


def whole(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def counted(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise ValueError(text)
    return number


def numbers(text: str) -> tuple[float, ...]:
    return tuple(duration(part) for part in text.split(","))


def duration(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError(text)
    return number


def minutes(text: str) -> float:
    return duration(text)


for kind, word in {
    whole: "whole number", counted: "whole number from 1", share: "number in (0, 1]", numbers: "list of numbers",
    duration: "number of seconds", minutes: "number of minutes", batch_sizes: "list of batch sizes",
    option: "option, which is key=value:",
}.items():  # fmt: skip
    kind.__name__ = word  # argparse says "invalid whole number value"
