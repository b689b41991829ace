"""The layers of the house: arrows run down only, nothing runs in circles, and an import costs what it says."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = (  # from the top down; a room may import what stands below it, and itself
    ("toastc.cli", "toastc.__main__", "toastc.calibrate"),
    ("toastc.training",),
    ("toastc.testing", "toastc.olive"),
    ("toastc.api",),
    ("toastc.compiler.sources.module", "toastc.compiler.sources.dynamo", "toastc.compiler.sources.named",
     "toastc.compiler.sources.onnx", "toastc.compiler.measure"),
    ("toastc.compiler.compile", "toastc.compiler.deploy"),
    ("toastc.compiler.sources",),
    ("toastc.compiler",),
    ("toastc.report",),
    ("toastc.passes",),
    ("toastc.passes.registry",),
    ("toastc.passes.prove", "toastc.passes.deploy"),
    ("toastc.passes.recover",),
    ("toastc.passes.choose",),
    ("toastc.passes.score",),
    ("toastc.passes.analyse",),
    ("toastc.passes.tokens",),
    ("toastc.passes.shrink",),
    ("toastc.passes.match",),
    ("toastc.passes.state",),
    ("toastc.timing",),
    ("toastc.calibration",),
    ("toastc.graphs.modules",),
    ("toastc.graphs.onnx", "toastc.graphs.fx"),
    ("toastc.graphs",),
    ("toastc.plans",),
    ("toastc.system",),
    ("toastc",),
)  # fmt: skip
OPTIONAL = {"torch", "onnxruntime", "onnxscript", "timm", "transformers", "rich", "PIL", "safetensors"}  # heavy, or not there
TORCH_ROOMS = (
    "toastc.graphs.fx", "toastc.graphs.modules", "toastc.training", "toastc.timing.modules", "toastc.calibration.workers",
    "toastc.passes.prove.modules",
    "toastc.compiler.sources.module", "toastc.compiler.sources.dynamo", "toastc.compiler.sources.named",
    "toastc.graphs.onnx.bound",
)  # fmt: skip
ONNX_ROOMS = (
    "toastc.graphs.onnx", "toastc.passes.prove.files", "toastc.compiler.sources.onnx",
)  # fmt: skip
BY_NAME = {"toastc", "toastc.cli", "toastc.compiler.sources"}  # rooms that load others when they are asked for them


class Import(NamedTuple):
    room: str
    line: int
    name: str
    inside: bool  # a function


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(("toastc", *parts) if parts[0] == "passes" else parts)


FILES = {room_of(p): p for p in sorted([*(ROOT / "toastc").rglob("*.py"), *(ROOT / "passes").rglob("*.py")])}


def imports(room: str, text: str | None = None) -> Iterator[Import]:
    """Every import of a room, also those inside functions and those for type checkers alone."""
    tree = ast.parse(FILES[room].read_text() if text is None else text)
    package = room.split(".") if FILES[room].name == "__init__.py" else room.split(".")[:-1]
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(n) for function in functions for n in ast.walk(function)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{module}.{a.name}" if f"{module}.{a.name}" in FILES else module for a in node.names]
        for name in dict.fromkeys(names):
            yield Import(room, node.lineno, name, id(node) in inside)


EVERY = [i for room in FILES for i in imports(room)]


def layer_of(room: str) -> int:
    """The lowest number stands highest."""
    known = [(len(name), n) for n, names in enumerate(LAYERS) for name in names if room == name or room.startswith(f"{name}.")]
    return max(known)[1]


def upward(found: Iterator[Import] | list[Import]) -> list[Import]:
    arrows = [i for i in found if i.name in FILES and i.name != i.room]
    return [i for i in arrows if layer_of(i.name) < layer_of(i.room) or (beside(i) and layer_of(i.name) == layer_of(i.room))]


def beside(arrow: Import) -> bool:
    """From one room to another of the same floor: the two adapters, say."""
    names = LAYERS[layer_of(arrow.room)]
    own, other = ([n for n in names if r == n or r.startswith(f"{n}.")] for r in (arrow.room, arrow.name))
    return own != other and len(names) > 1 and layer_of(arrow.room) == layer_of("toastc.graphs.onnx")


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Ways that lead back to where they began."""
    done: set[str] = set()
    found: list[list[str]] = []

    def visit(room: str, way: list[str]) -> None:
        if room in way:
            found.append([*way[way.index(room) :], room])
        elif room not in done:
            for below in sorted(arrows.get(room, ())):
                visit(below, [*way, room])
            done.add(room)

    for room in arrows:
        visit(room, [])
    return found


def test_arrows_run_down() -> None:
    assert upward(EVERY) == []


def test_nothing_runs_in_circles() -> None:
    arrows: dict[str, set[str]] = {}
    for i in EVERY:
        if i.name in FILES:
            arrows.setdefault(i.room, set()).add(i.name)
    assert circles(arrows) == []


def test_only_what_is_optional_is_imported_inside_functions() -> None:
    assert [i for i in EVERY if i.inside and i.name.split(".")[0] not in OPTIONAL] == []


def test_only_three_rooms_load_others_by_name() -> None:
    assert {room for room, path in FILES.items() if "import_module" in path.read_text()} == BY_NAME


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("toastc.plans.plan", "from ..compiler import compile"),
        ("toastc.plans.plan", "def f():\n    from ..passes.match import flow"),
        ("toastc.graphs.onnx.reader", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..fx import graph"),
        ("toastc.passes.match.flow", "from toastc.passes.shrink import cuts"),
    ],
)
def test_an_arrow_that_runs_up_is_found(room: str, text: str) -> None:
    assert len(upward(imports(room, text))) == 1


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]


def test_an_import_inside_a_function_is_found() -> None:
    found = list(imports("toastc.plans.plan", "def f():\n    import json\n    import torch"))
    assert [(i.name, i.inside) for i in found] == [("json", True), ("torch", True)]


def test_every_room_has_its_layer() -> None:
    assert all(any(r == n or r.startswith(f"{n}.") for names in LAYERS for n in names) for r in FILES)
    named = [n for names in LAYERS for n in names]
    assert len(named) == len(set(named)) and all(n in FILES for n in named)
    assert all(a != b for a, b in pairwise(LAYERS))


def users_of(*libraries: str) -> set[str]:
    return {i.room for i in EVERY if i.name.split(".")[0] in libraries}


def test_torch_and_onnx_stay_in_their_rooms() -> None:
    for rooms, libraries in ((TORCH_ROOMS, ("torch",)), (ONNX_ROOMS, ("onnx", "onnx_ir", "onnxruntime"))):
        found = users_of(*libraries)
        assert [r for r in found if not any(r == n or r.startswith(f"{n}.") for n in rooms)] == []
        assert [n for n in rooms if not any(r == n or r.startswith(f"{n}.") for r in found)] == []


def test_plans_know_numpy_alone() -> None:
    found = {i.name.split(".")[0] for i in EVERY if i.room.startswith("toastc.plans")}
    assert found - set(sys.stdlib_module_names) - {"toastc"} == {"numpy", "safetensors"}


def test_no_pass_asks_for_the_name_of_an_operator() -> None:
    asked = re.compile(r"\b(?!f\.)\w+\.type\b *(?:==|!=|in\b|not in\b)|(?:==|!=|\bin\b) *\w+\.type\b|\w\.type\.\w")
    lines = [(r, line) for r, p in FILES.items() if r.startswith("toastc.passes") for line in p.read_text().splitlines()]
    assert [(r, line) for r, line in lines if asked.search(line)] == []


def test_no_pass_reaches_into_a_graph() -> None:
    private = re.compile(r"(?<!self)(?<!cls)\._[a-z]\w*")
    reaching = [
        (r, line)
        for r, p in FILES.items()
        if r.startswith(("toastc.passes", "toastc.compiler.c", "toastc.compiler.r", "toastc.report"))
        for line in p.read_text().splitlines()
        if private.search(line) and "torch" not in line and "import" not in line
    ]
    assert reaching == []


def test_no_method_is_named_in_the_matcher() -> None:
    """The matcher knows no model and no exporter."""
    words = ("timm", "deit", "swin", "bert", "beit", "dinov2", "onnxsim", "dynamo", "torchscript")
    for room, path in FILES.items():
        if room.startswith("toastc.passes.match"):
            assert not [w for w in words if w in path.read_text().lower()], room


def test_rooms_are_few() -> None:
    for folder, most in (("toastc", 14), ("passes", 12)):
        names = [p.name for p in (ROOT / folder).iterdir() if not p.name.startswith("__")]
        assert len(names) <= most, names


def test_files_are_short() -> None:
    assert {r: n for r, p in FILES.items() if (n := len(p.read_text().splitlines())) > 250} == {}


def test_importing_toastc_brings_no_framework() -> None:
    code = "import sys, toastc, toastc.cli; print([m for m in ('torch', 'onnx', 'numpy', 'rich') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("name", ["tools", "tests", "docs", "benchmarks"])
def test_the_checkout_is_no_part_of_toastc(name: str) -> None:
    """A plain checkout lets `toastc.passes` in, and nothing else that lies beside it."""
    import toastc

    assert importlib.util.find_spec(f"toastc.{name}") is None
    assert not hasattr(toastc, name)


def test_no_module_hides_a_function() -> None:
    """A submodule, once imported, would stand in the package's place of that name."""
    import toastc

    there = {p.stem if p.is_file() else p.name for p in (ROOT / "toastc").iterdir()}
    assert not there & set(toastc.__all__)


def test_every_room_is_in_the_package() -> None:
    """An editable install finds them all; a wheel only those that are named."""
    named = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert {room for room, path in FILES.items() if path.name == "__init__.py"} <= named
