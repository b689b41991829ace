"""The words of the command: its options, their types and their help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..compiler.options import COMMAND, DATA, RUNS_IN, Word, counted, number, whole, words
from ..system.vocabulary import Json

PRUNE_HELP = """Make a Vision Transformer smaller without retraining.

  toastc MODEL.onnx -o OUT.onnx --ratios r.json     prune by a ratio file and prove the result
  toastc MODEL.onnx -o OUT.onnx --target macs=0.6 --calibrate photos/
                                                    keep 60 % of the MACs, where it hurts least
  toastc MODEL.onnx -o OUT.onnx --target macs=0.6 --calibrate photos/ --quick
                                                    a first look
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
EXCLUSIVE = ("ratios", "target", "plan")  # one of them at most
GROUPS = {
    RUNS_IN: "changed after the proof, and compared with what was proven",
    DATA: "what the model does on it decides what stays, and makes up for what goes",
}


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="or timm:NAME, hf:NAME, hf:FOLDER: exported first")


def add_words(parser: argparse.ArgumentParser, names: Sequence[str] = ()) -> None:
    """Those of the compiler's options that the command knows, or these of them; each in its group."""
    rooms: Json = {"": parser}
    exclusive = parser if names else parser.add_mutually_exclusive_group()  # an empty group breaks --help
    for name, default, word in words(COMMAND):
        if names and name not in names:
            continue
        if word.group not in rooms:
            rooms[word.group] = parser.add_argument_group(word.group, GROUPS.get(word.group))
        room = exclusive if name in EXCLUSIVE else rooms[word.group]
        add_word(room, name, default, word)
        if name == "images":
            add_preprocessing(room)


def add_word(room: Any, name: str, default: Any, word: Word) -> None:
    flag = word.flag or name.replace("_", "-")
    flags = [flag, f"--{name}"] if flag.startswith("-") else [f"--{flag}"]
    if word.type is bool:
        room.add_argument(*flags, dest=name, action="store_false" if default else "store_true", help=word.help)
    else:
        more: Json = {"choices": word.choices} if word.choices else {"metavar": word.metavar}
        room.add_argument(*flags, dest=name, default=default, type=word.parse or word.type, help=word.help, **more)


def add_preprocessing(group: Any) -> None:
    group.add_argument("--size", type=counted, help="images: pixels a side (default: the model's, else 224)")
    group.add_argument("--crop", type=share, help="images: the middle share that is kept (0.875)")
    group.add_argument("--mean", type=numbers, metavar="R,G,B", help="images: ImageNet's by default")
    group.add_argument("--std", type=numbers, metavar="R,G,B", help="images: ImageNet's by default")


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
        add_words(p)
        p.add_argument(
            "--quick", action="store_const", dest="recipe", const="quick", default=argparse.SUPPRESS,
            help="a first look: recipe quick, in a part of the time and of the memory",
        )  # fmt: skip
    elif command == "calibrate":
        p = Parser("toastc calibrate", description=CALIBRATE_HELP, formatter_class=raw)
        add_model(p)
        p.add_argument("data", metavar="DATA", help="a folder of images, or .npy, .npz, .safetensors of ready inputs")
        p.add_argument(
            "-o", "--output", type=Path, metavar="M.safetensors", required=True, help="where to save what was measured"
        )
        p.add_argument(
            "--no-inputs", dest="inputs", action="store_false",
            help="keep none of the images in the file (consumers are fitted on them; without them they keep their fold)",
        )  # fmt: skip
        add_words(p, ("images", "provider", "weights", "seed"))
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
    if command == "verify":
        p.add_argument("--seed", type=whole, default=0, help="of whatever is drawn at random (0)")
    p.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    p.add_argument("--quiet", action="store_true", help="no progress, no tables")
    return p


def batch_sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) for part in text.split(","))
    if not sizes or min(sizes) < 1:
        raise ValueError(text)
    return sizes


def above_zero(text: str) -> float:
    found = float(text)
    if found == 0:
        raise ValueError(text)
    return found


def option(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ValueError(text)
    return key, value


share = number(0, "number in (0, 1]", above_zero, 1)
duration = number(0, "number of seconds", float)


def numbers(text: str) -> tuple[float, ...]:
    return tuple(duration(part) for part in text.split(","))


for kind, name in {
    numbers: "list of numbers", batch_sizes: "list of batch sizes", option: "option, which is key=value:",
}.items():  # fmt: skip
    kind.__name__ = name  # argparse says "invalid list of numbers value"
