"""Every word a compile understands, once.

The command's arguments, `toastc.prune`'s keywords, the options of the torch.compile backend and the configuration of Olive's pass
are all made from `Options`. A new option is one field here; a pass that wants it says so at its own field (`passes.state.taken`).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Flag, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..plans.targets import DTYPES, QUANTIZED, RUNTIMES, Deploy
from ..system.progress import Tell, silent
from ..system.vocabulary import Inputs, Read

if TYPE_CHECKING:
    from ..calibration import Moments, Preprocess, Workers
    from ..plans.cost import Target
    from ..plans.plan import Plan
    from ..plans.promises import Promise


class Door(Flag):
    """Where a word can be said."""

    COMMAND = auto()
    PYTHON = auto()
    BACKEND = auto()
    OLIVE = auto()


COMMAND, PYTHON, BACKEND, OLIVE = Door.COMMAND, Door.PYTHON, Door.BACKEND, Door.OLIVE
ANYWHERE = COMMAND | PYTHON | BACKEND | OLIVE
FILES = COMMAND | PYTHON | OLIVE  # of ONNX files alone
RUNS_IN, DATA = "where it will run", "calibration data"  # groups of the command's help


@dataclass(frozen=True)
class Word:
    help: str
    doors: Door = ANYWHERE
    type: Any = str  # as JSON has it
    parse: Callable[[str], Any] | None = None  # a word of the command, if it is not just of that type
    flag: str = ""  # of the command, where that is not its name
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    group: str = ""


def word(default: Any, help: str, doors: Door = ANYWHERE, **more: Any) -> Any:
    return field(default=default, metadata={"word": Word(help, doors, **more)})


def number(least: float, what: str, kind: Callable[[str], Any] = int, most: float = float("inf")) -> Callable[[str], Any]:
    """argparse says "invalid whole number value"."""

    def parse(text: str) -> Any:
        found = kind(text)
        if not least <= found <= most or found == float("inf"):
            raise ValueError(text)
        return found

    parse.__name__ = what
    return parse


def file_or_content(text: str) -> Any:
    """An object or a number of JSON as it stands; else the path of a file."""
    try:
        found = json.loads(text)
    except ValueError:
        return Path(text)
    return found if isinstance(found, dict | int | float) else Path(text)


whole, counted = number(0, "whole number"), number(1, "whole number from 1")
minutes = number(0, "number of minutes", float)


@dataclass(frozen=True)
class Options:
    """What can be asked of a compile, as it was said. `compiler.request` makes sense of it."""

    ratios: Any = word(None, "how much of every coupling to remove: a ratio file, its content, or a number", metavar="R.json",
                       type=dict | str | float, parse=file_or_content)  # fmt: skip
    target: str | float | Target | Promise | None = word(
        None, "share of the MACs (or params, latency) to keep, or what may be lost: error=0.02, agree=0.99, drop=0.5",
        metavar="macs=0.6",
    )  # fmt: skip
    plan: Plan | str | Path | None = word(None, "replay a plan written by --plan-out", metavar="P.safetensors", parse=Path)
    data: Any = word(None, "a folder of images, or .npy, .npz, .safetensors of ready inputs", flag="calibrate", metavar="DATA",
                     group=DATA)  # fmt: skip
    images: int | None = word(None, "use that many of them (default: all)", type=int, parse=counted, metavar="N", group=DATA)
    preprocess: Preprocess | None = word(None, "how images are prepared", PYTHON | BACKEND)
    labels: Any = word(None, "what the inputs are: a folder of class folders, or a file of numbers", metavar="LABELS", parse=Path,
                       group=DATA)  # fmt: skip
    moments: Moments | str | Path | None = word(None, "instead of data: what --moments-out wrote", metavar="M.safetensors",
                                                parse=Path, group=DATA)  # fmt: skip
    tokens: Any = word(None, "merge tokens: horizontally before block 4, vertically before block 8", metavar="h4,v8")
    allow: str | Sequence[str] | None = word(None, "what meets a target in MACs (channels, and tokens nobody reads)",
                                             metavar="channels,tokens")  # fmt: skip
    search: float | None = word(None, "refine the widths by measuring the pruned model", type=float, parse=minutes,
                                metavar="MINUTES")  # fmt: skip
    batch: int = word(1, "the batch size of a latency target (1)", type=int, parse=counted, metavar="N")
    runtime: str = word("portable", "fused nodes for ONNX Runtime, ... (portable)", FILES, flag="for", choices=tuple(RUNTIMES),
                        group=RUNS_IN)  # fmt: skip
    dtype: str | None = word(None, "weights and arithmetic; inputs and outputs keep their type", FILES, choices=DTYPES,
                             group=RUNS_IN)  # fmt: skip
    quantize: str | None = word(None, "linears in 8 bits, by the calibration data", FILES, choices=QUANTIZED, group=RUNS_IN)
    provider: str = word("cpu", "where the model runs while it is watched (cpu)", FILES, choices=("cpu", "cuda"), group=DATA)
    recipe: str = word("default", "default, magnitude, toast, ... (docs)", metavar="NAME")
    passes: str | tuple[Any, ...] | None = word(
        None, 'spell the recipe: "score-weights{by=geometric-median},plan-ratios"', metavar="P,Q"
    )
    output: str | Path | None = word(None, "where to write the smaller model", COMMAND | PYTHON, flag="-o", metavar="OUT.onnx",
                                     parse=Path)  # fmt: skip
    plan_out: str | Path | None = word(None, "also save the plan", metavar="P.safetensors", parse=Path)
    report_out: str | Path | None = word(None, "also save the report as a page", FILES, flag="report", metavar="OUT.html",
                                         parse=Path)  # fmt: skip
    moments_out: str | Path | None = word(None, "also save what was measured", FILES, metavar="M.safetensors", parse=Path,
                                          group=DATA)  # fmt: skip
    ratios_out: str | Path | None = word(None, "also save the ratios that were chosen", FILES, metavar="R.json", parse=Path)
    example_inputs: Inputs | None = word(None, "what a module is captured and proven with", PYTHON)
    as_graph: bool = word(False, "a smaller graph, instead of the module itself made smaller", PYTHON, type=bool)
    seed: int = word(0, "of whatever is drawn at random (0)", type=int, parse=whole)
    verify: bool = word(True, "skip the proof", type=bool, flag="no-verify")
    dry_run: bool = word(False, "plan and report, write no model", COMMAND | PYTHON, type=bool)
    weights: str | None = word(None, "of a model given by name, instead of its own; or random", COMMAND | PYTHON,
                               metavar="W.safetensors")  # fmt: skip
    command: str | None = word(None, "how it was asked for, in full", PYTHON)
    tell: Tell | None = word(None, "is told of the progress, instead of whoever watches", PYTHON)
    quiet: bool = word(False, "show no progress", PYTHON, type=bool)
    workers: Workers | None = word(None, "processes that share the calibration data: all plan, the first writes", PYTHON)
    observe: int = word(64, "inputs that run dense before widths are chosen by them; 0: choose at once", BACKEND, type=int)
    then: str = word(
        "inductor", "what the smaller graph is handed on to: inductor, or eager", BACKEND, choices=("inductor", "eager")
    )
    mode: str | None = word(None, "of inductor: max-autotune, ...", BACKEND)
    fuse: bool = word(True, "attention that is spelt out becomes one call", BACKEND, type=bool)

    @property
    def deploy(self) -> Deploy:
        return Deploy(self.runtime, self.dtype, self.quantize)

    @property
    def own(self) -> Options:
        """What this process is to do of it: all but the first of several end with the plan."""
        if self.workers is None or not self.workers.rank:
            return self
        none: dict[str, Any] = dict.fromkeys(("output", "plan_out", "report_out", "moments_out", "ratios_out"))
        return replace(self, dry_run=True, tell=silent, **none)

    @property
    def targets(self) -> list[Path]:
        """The files that will be written."""
        by_products = (self.plan_out, self.report_out, self.moments_out, self.ratios_out)
        output = () if self.output is None else (self.output, f"{self.output}.data")
        return [Path(p) for p in (*output, *by_products) if p is not None]


def words(door: Door, kind: type | None = None) -> Iterator[tuple[str, Any, Word]]:
    """(name, default, word) of everything that can be said there."""
    for each in fields(kind or Options):
        if each.metadata["word"].doors & door:
            yield each.name, each.default, each.metadata["word"]


def signature(door: Door, *first: str) -> inspect.Signature:
    """Of a function that takes these words: a model, then those that may go without their name, then keywords."""
    given = [inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="Any")]
    notes = {each.name: each.type for each in fields(Options)}
    for kind, wanted in ((inspect.Parameter.POSITIONAL_OR_KEYWORD, True), (inspect.Parameter.KEYWORD_ONLY, False)):
        found = [(name, default) for name, default, _ in words(door) if (name in first) is wanted]
        given += [inspect.Parameter(name, kind, default=default, annotation=notes[name]) for name, default in found]
    return inspect.Signature(given, return_annotation="Result")


def stated(given: Read) -> Options:
    """The options with these words said, all others left out."""
    return Options(**given)
