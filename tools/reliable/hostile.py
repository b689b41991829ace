"""Files somebody made to do harm: to read what is elsewhere, fill memory, run code, write into the report or the terminal.

Each has to be refused in one line, or to do no harm; every case runs in a process of its own, with four gigabytes of memory.
"""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from . import QUICK, Row, found_in, workplace, wrong
from .limits import limited
from .mutate_nodes import NAMES, branches
from .runs import ran

MEMORY = 4 << 30
WEIGHT = "blocks.0.attn.qkv.weight"
HTML = "<script>alert(1)</script>"


class Runs:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def elsewhere(folder: Path, location: str) -> Path:
    """The tiny ViT whose first weight is said to be somewhere else."""
    import models

    path = models.save_external(models.vit(), folder / "model.onnx", "weights.bin")
    models.points_at(path, WEIGHT, location=location)
    return Path(path)


def links(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(bytes(1 << 20))
    for name, goal in (("link", folder.parent / "secret"), ("null", "/dev/zero"), ("self", "self"), ("memory", "/proc/self/mem")):
        (folder / name).symlink_to(goal)
    os.mkfifo(folder / "pipe")
    (folder / "up").symlink_to(folder.parent)


PLACES = (
    "../secret", "/dev/zero", "/etc/passwd", "link", "null", "self", "memory", "pipe", "up/secret", "", ".", "sub/../../secret",
    "//dev/zero", "weights.bin/", "a\x00b", "n" * 5000, "..\\secret", "C:\\secret", "file:///etc/passwd", "~/secret", "$HOME",
)  # fmt: skip


def claims(folder: Path, dims: list[int], kind: int = TensorProto.FLOAT, outside: bool = False) -> Path:
    """A weight that says it is as large as that, and is not there."""
    import models

    model = models.vit()
    tensor = next(t for t in model.graph.initializer if t.name == WEIGHT)
    tensor.ClearField("raw_data")
    tensor.dims[:], tensor.data_type = dims, kind
    if outside:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="sparse")
        with open(folder / "sparse", "wb") as file:
            file.truncate(1 << 40)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def large_input(folder: Path, size: int) -> Path:
    import models

    model = models.vit()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
    return Path(models.save(model, folder / "model.onnx"))


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number % 128 + 128]) + varint(number // 128)


def nested(folder: Path, depth: int) -> Path:
    """Branches within branches, every one of them to be walked; protobuf's own tools can not even write the deepest."""
    import models

    if depth > 30:
        data = b""
        for tag in (b"\x32", b"\x2a", b"\x0a") * depth:  # from inside: an attribute's graph, a node's attribute, a graph's node
            data = tag + varint(len(data)) + data
        (folder / "model.onnx").write_bytes(models.vit().SerializeToString() + b"\x3a" + varint(len(data)) + data)
        return folder / "model.onnx"

    model, node = models.vit(), branches("logits", depth)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    model.graph.node.append(node)
    model.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def named(folder: Path, name: str) -> Path:
    """Names of nodes, weights and the first input begin with something else."""
    import models

    model = models.vit()
    new = {t.name: f"{name}{t.name}" for t in model.graph.initializer}
    for tensor in model.graph.initializer:
        tensor.name = new[tensor.name]
    for node in model.graph.node:
        node.name = f"{name}{node.name}"
        node.input[:] = [new.get(i, i) for i in node.input]
    model.graph.name = model.producer_name = model.doc_string = name
    return Path(models.save(model, folder / "model.onnx"))


def pickled(folder: Path, name: str, wrapped: bool) -> Path:
    """A pickle that runs code, as it is or as an array of objects."""
    path, trap = folder / name, Runs(folder / "it ran")
    if wrapped:
        with open(path, "wb") as file:
            np.save(file, np.array([trap], object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(trap))
    return path


Case = tuple[str, Callable[[Path], list[str]]]


def cases() -> list[Case]:
    """Of each what it is, and what makes its files in a folder and says how the command is called."""

    def prune(path: Path, *more: str) -> list[str]:
        out = str(path.parent / "out.onnx")
        return [str(path), "-o", out, "--ratios", str(path.parent / "r.json"), *QUICK, *more]

    def calibrate(model: Path, data: Path) -> list[str]:
        return ["calibrate", str(model), str(data), "-o", str(model.parent / "m"), "--quiet"]

    def tiny(folder: Path) -> Path:
        import models

        return Path(models.save(models.vit(), folder / "tiny.onnx"))

    def at(place: str, folder: Path) -> list[str]:
        links(folder)
        return prune(elsewhere(folder, place))

    found: list[Case] = [(f"external data at {place[:30]!r}", partial(at, place)) for place in PLACES]
    for dims in ([2**40], [2**62, 2**62], [2**31, 96], [2**20, 2**20, 0]):
        found.append((f"a weight of {dims}", lambda f, d=dims: prune(claims(f, d))))  # type: ignore[misc]
    found += [
        ("a weight of 256 GB in a sparse file", lambda f: prune(claims(f, [2**31, 32], outside=True))),
        ("strings that are a weight", lambda f: prune(claims(f, [2**40], TensorProto.STRING))),
    ]
    for size in (2**31, 2**40, 2**62):
        found.append((f"an input of {size} images", lambda f, s=size: prune(large_input(f, s))))  # type: ignore[misc]
    for depth in (10, 30, 5000):
        found.append((f"branches {depth} deep", lambda f, d=depth: prune(nested(f, d))))  # type: ignore[misc]
    for name in (
        HTML,
        "\x1b[2J",
        "$(touch 'it ran');",
        "a\nb",
        "../../../",
        "%s%n",
        "\u202e",
        "'\"><img src=x onerror=alert(1)>",
    ):
        found.append((f"names with {name!r}", lambda f, n=name: prune(named(f, n), "--report", str(f / "page.html"))))  # type: ignore[misc]
    for wrapped in (False, True):
        of = "an array of objects" if wrapped else "a pickle"
        found += [
            (f"{of} as the model", lambda f, w=wrapped: prune(pickled(f, "model.pt", w))),  # type: ignore[misc]
            (
                f"{of} as a plan",
                lambda f, w=wrapped: [str(tiny(f)), "-o", str(f / "o"), "--plan", str(pickled(f, "p", w)), "--quiet"],
            ),  # type: ignore[misc]
            (f"{of} as moments", lambda f, w=wrapped: [*prune(tiny(f))[:-3], "--moments", str(pickled(f, "m", w)), "--quiet"]),  # type: ignore[misc]
            (f"{of} as ratios", lambda f, w=wrapped: [*prune(tiny(f))[:4], str(pickled(f, "r", w)), "--quiet"]),  # type: ignore[misc]
        ]
        for name in ("x.npy", "x.npz", "x.safetensors"):
            found.append((f"{of} as {name}", lambda f, w=wrapped, n=name: calibrate(tiny(f), pickled(f, n, w))))  # type: ignore[misc]
    return found


def harm(folder: Path, before: dict[str, bytes | None], said: str, status: int | None) -> str:
    """What a file managed to do."""
    if (folder / "it ran").exists():
        return "code of the file was run"
    if any(ord(c) < 32 for c in said.rstrip("\n")) or any(name in said for name in ("\u202e", "\x1b")):
        return "control characters of the file reached the terminal"
    page = folder / "page.html"
    if page.exists() and any(word in page.read_text() for word in (HTML, "<img src=x", "\x1b[2J")):
        return "names of the file are code of the page"
    left = {str(p.relative_to(folder)) for p in folder.rglob("*")} - set(before)
    return f"left behind: {sorted(left)}" if status and left else ""


def run(say: bool = True) -> Row:
    row: Row = {"cases": 0, "refused": 0, "harmless": 0, "bad": 0}
    assert HTML in NAMES
    with workplace() as place:
        for what, make in cases():
            folder = place / "work" / "in"
            folder.mkdir()
            (folder / "r.json").write_text('{"attention": 0.5, "ffn": 0.5}')
            args = make(folder)
            before = {str(p.relative_to(folder)): None for p in folder.rglob("*")}
            end = ran(args, partial(limited, resource.RLIMIT_AS, MEMORY))
            why = wrong(end.status, end.said, end.seconds) or harm(folder, before, end.said, end.status)
            if not why and found_in(Path(tempfile.gettempdir())):
                why = "left something in the folder for temporary files"
            row["cases"] += 1
            row["bad" if why else "refused" if end.status else "harmless"] += 1
            if say:
                print(f"  {what}: {why or end.said.strip().replace(str(place), '') or 'done'}"[:200], flush=True)
            shutil.rmtree(folder)
            (folder.parent / "secret").unlink(missing_ok=True)
    return row
