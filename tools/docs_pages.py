"""The reference pages of the documentation, written anew whenever the site is built: a hook of mkdocs.

    mkdocs build        (make docs)

`reference/command.md` is the parsers' own help, `reference/python.md` the docstrings of what Python calls, and
`reference/passes.md` every pass with its options and every recipe with what it is made of.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Iterator
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import toastc
from toastc import passes
from toastc.cli import COMMANDS
from toastc.cli.parser import parser_for
from toastc.passes.registry import BUILT_IN

WIDTH, QUOTE = 100, '"'
PYTHON = {
    "Pruning": ["prune", "inspect", "measure", "verify", "bench", "api.kernels", "export"],
    "What comes out": ["Result", "report.data.Report", "report.data.Size", "Plan"],
    "What goes in": ["calibration.Preprocess", "calibration.Moments"],
    "Folders": ["save_pretrained", "from_pretrained"],
    "For tests": ["testing.assert_equivalent"],
    "Training": [
        "finetune.trainable", "finetune.Distillation", "finetune.save", "finetune.load", "finetune.Masks", "compact",
        "training.compactors.Controller",
    ],
    "Errors": ["ToastcError", "system.errors.NothingToPrune", "system.errors.VerificationFailed"],
}  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """mkdocs calls this when it has listed the pages."""
    for name, write in {"command": command_page, "python": python_page, "passes": passes_page}.items():
        files.append(File.generated(config, f"reference/{name}.md", content=linked("\n".join(write()))))
    return files


def linked(text: str) -> str:
    """Pages that docstrings name become links."""
    return re.sub(r"`?docs/(\w+)\.md`?", r"[\1](../\1.md)", text) + "\n"


# ---- the command -----------------------------------------------------------------------------------------


def command_page() -> Iterator[str]:
    os.environ |= {"COLUMNS": str(WIDTH), "NO_COLOR": "1"}  # argparse asks the terminal otherwise
    yield "# The command\n"
    yield "What `toastc --help` and `toastc COMMAND --help` print. `toastc` without the name of a command prunes."
    for command in COMMANDS:
        yield f"\n## {'toastc' if command == 'prune' else f'toastc {command}'}\n"
        yield from fenced(parser_for(command).format_help(), "text")
    yield "\nThe exit status is 0 where all is done and proven, 1 where the proof failed or nothing could be pruned, 2 for bad"
    yield "usage or bad input, 130 when interrupted. Errors are one line on stderr; [some are explained](../errors.md)."


def fenced(text: str, language: str) -> list[str]:
    return [f"```{language}", text.rstrip(), "```"]


# ---- Python ----------------------------------------------------------------------------------------------


def python_page() -> Iterator[str]:
    yield "# Python\n"
    yield f"`import toastc` costs nothing: names are looked up on first use. There are {', '.join(map(code, toastc.__all__))},"
    yield "and the modules `toastc.testing` and `toastc.passes`. `toastc.finetune` is a module, too. `toastc.backend` is what"
    yield '`torch.compile(model, backend="toastc")` finds.'
    for title, names in PYTHON.items():
        yield f"\n## {title}\n"
        yield from (line for name in names for line in described(f"toastc.{name}"))


def described(name: str) -> Iterator[str]:
    """A heading, the signature, the docstring; of a class, its public methods as well."""
    thing = resolve_name(name)
    yield f"\n### {name}\n"
    if not (inspect.isclass(thing) and issubclass(thing, Exception)):
        yield from fenced(signature(name, thing), "python")
    yield "\n" + (inspect.getdoc(thing) or "")
    if inspect.isclass(thing):
        own = {
            n: f for n, f in vars(thing).items() if not n.startswith("_") and inspect.isfunction(inspect.unwrap(as_function(f)))
        }
        yield ""
        yield from (f"- `{n}{arguments(as_function(f))}`{first_line(f)}" for n, f in own.items())


def as_function(member: Any) -> Any:
    """What a method, a static method or a property calls."""
    return getattr(member, "__func__", None) or getattr(member, "fget", None) or member


def first_line(member: Any) -> str:
    doc = inspect.getdoc(as_function(member)) or ""
    return f": {doc.splitlines()[0]}" if doc else ""


def arguments(function: Any) -> str:
    """A signature without the quotes that postponed annotations have, and without addresses."""
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(function)))
    return re.sub(r"<function (\w+) at \w+>", r"\1", text)


def signature(name: str, thing: Any) -> str:
    line = f"{name}{arguments(thing)}".removesuffix(" -> None") if inspect.isclass(thing) else f"{name}{arguments(thing)}"
    if len(line) <= WIDTH:
        return line
    inside, _, back = line[len(name) + 1 :].rpartition(")")
    return "\n".join([f"{name}(", *(f"    {part}," for part in split_arguments(inside)), f"){back}"])


def split_arguments(text: str) -> Iterator[str]:
    """At the commas that stand in no bracket."""
    depth, start = 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            yield text[start:at].strip()
            start = at + 1
    yield text[start:].strip()


def code(word: str) -> str:
    return f"`{word}`"


# ---- passes and recipes ----------------------------------------------------------------------------------


def passes_page() -> Iterator[str]:
    yield "# Passes and recipes\n"
    yield "A recipe is a tuple of passes. `--recipe NAME` takes one of these; `--passes` spells another one,"
    yield '`"score-weights{by=geometric-median},plan-ratios"`, in which `match-sites` need not be said.'
    yield "[Writing a pass](../guides/writing-a-pass.md) adds one of your own.\n"
    yield "## Recipes\n"
    yield "`default` is `calibrated` with data, `synthetic` without, and `magnitude` where the model does not take images.\n"
    why = reasons(passes)
    for name, steps in passes.RECIPES.items():
        yield f"### {name}\n"
        yield why.get(id(steps), "") + "\n"
        yield from fenced(",\n".join(spelled(step) for step in steps), "text")
        yield ""
    yield "## Passes\n"
    for cls in sorted(BUILT_IN, key=lambda c: c.name):  # type: ignore[attr-defined]
        yield from described_pass(cls)


def reasons(module: ModuleType) -> dict[int, str]:
    """What the comment above each recipe says, by the recipe."""
    found = re.findall(r"((?:^# .*\n)+)^(\w+): tuple\[Pass", inspect.getsource(module), re.M)
    return {id(getattr(module, name)): re.sub(r"^# ?", "", text, flags=re.M).replace("\n", " ") for text, name in found}


def spelled(step: Any) -> str:
    """A pass as `--passes` takes it, with the options that are not the usual ones."""
    usual = {f.name: f.default for f in dataclasses.fields(step)}
    own = [f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in vars(step).items() if v != usual[k]]
    return f"{step.name}{{{','.join(own)}}}" if own else step.name


def described_pass(cls: Any) -> Iterator[str]:
    yield f"### {cls.name}\n"
    yield (inspect.getdoc(cls) or "") + "\n"
    options = re.findall(r"^    (\w+): \S+ = (.*?)(?:  # (.*))?$", inspect.getsource(cls), re.M)
    if options:
        yield "| option | without it | |\n|---|---|---|"
        yield from (f"| `{option}` | `{usual.strip(QUOTE)}` | {about} |".replace("``", "") for option, usual, about in options)
        yield ""
    about = re.sub(r"^[\w-]+: ", "", inspect.getdoc(inspect.getmodule(cls)) or "")
    yield about[:1].upper() + about[1:] + "\n"
