"""Damaged model files and ratio files, one after the other, through the command itself.

Workers are forked processes that call `toastc.cli.main`; the one who watches them sees a crash as a process that is gone, and a
hang as one that does not answer. A case is made from the seed and its number alone: `--first N --count 1` does one again.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from . import QUICK, RATIOS, SLOW, Row, found_in, mutate_onnx, mutate_ratios, progress, wrong

MEMORY = 8 << 30  # bytes of addresses a worker may have, so that no case takes the machine's memory
FORMS = ("plain", "float16", "transposed", "gemm", "dropout_constant")
COMMANDS = {"prune": 8, "inspect": 2, "verify": 3, "kernels": 1, "calibrated": 1, "data": 1, "deploy": 2}  # how often each
HALF = ("ort-cuda", "--dtype", "fp16")


@dataclass(frozen=True)
class Outcome:
    number: int
    what: str  # which command, and what was done to which file
    status: int | None
    said: str
    seconds: float
    left: str = ""

    @property
    def bad(self) -> str:
        return self.left or wrong(self.status, self.said, self.seconds)


@dataclass(frozen=True)
class Bases:
    """Sound files to be damaged: whole models, those that are nearly all structure, pruned ones."""

    models: tuple[bytes, ...]
    pruned: tuple[tuple[bytes, bytes], ...]  # dense and pruned
    ratios: bytes
    data: bytes
    beside: bytes  # the weights of those that are nearly all structure


def bases(folder: Path) -> Bases:
    import json

    import models
    import numpy as np

    from toastc.cli import main

    ratios = json.dumps(RATIOS).encode()
    (folder / "r.json").write_bytes(ratios)
    whole = [models.save(models.vit(form), folder / f"{form}.onnx") for form in FORMS]
    outside = models.save_external(models.vit(), folder / "outside.onnx", "weights.bin")
    pairs = []
    for dense in whole[:1]:
        for more in ((), ("--for", "ort-cpu")):
            out = folder / "out.onnx"
            assert main([str(dense), "-o", str(out), "--ratios", str(folder / "r.json"), *QUICK, *more]) == 0
            pairs.append((dense.read_bytes(), out.read_bytes()))
    np.save(folder / "data.npy", np.random.default_rng(0).standard_normal((8, 3, 16, 16)).astype(np.float32))
    structure = (outside.read_bytes(),) * len(FORMS)
    made = (*(p.read_bytes() for p in whole), *structure, *(small for _, small in pairs))
    return Bases(made, tuple(pairs), ratios, (folder / "data.npy").read_bytes(), (folder / "weights.bin").read_bytes())


def prepared(number: int, seed: int, given: Bases, folder: Path) -> tuple[str, list[str]]:
    """The files of a case in the folder; what it is, and the command's arguments."""
    rng = random.Random(f"{seed}/{number}")
    command = rng.choices(list(COMMANDS), list(COMMANDS.values()))[0]
    model, ratios, out = folder / "model.onnx", folder / "r.json", folder / "out.onnx"
    (folder / "weights.bin").write_bytes(given.beside)
    (folder / "data.npy").write_bytes(given.data)
    data, text, what = rng.choice(given.models), given.ratios, ""
    if command == "verify":
        dense, small = rng.choice(given.pruned)
        name, damaged = mutate_onnx.mutated(rng, rng.choice((dense, small, small)))
        model.write_bytes(dense)
        (folder / "small.onnx").write_bytes(damaged)
        args = [str(p) for p in (model, folder / "small.onnx")]
        return f"verify {name}", ["verify", *rng.choice((args, args, args[::-1])), "--quiet"]
    if command == "prune" and rng.random() < 0.4:
        name, text = mutate_ratios.mutated(rng)
        what = f"ratios {name}"
    else:
        name, data = mutate_onnx.mutated(rng, data)
        what = f"{command} {name}"
    model.write_bytes(data)
    ratios.write_bytes(text)
    base = [str(model), "-o", str(out), "--ratios", str(ratios), "--quiet"]
    more = {
        "prune": [*base, "--recipe", "magnitude"],
        "inspect": ["inspect", str(model), "--quiet"],
        "kernels": ["kernels", str(model), "--quiet"],
        "calibrated": [str(model), "-o", str(out), "--target", "macs=0.7", "--calibrate", str(folder / "data.npy"), "--quiet"],
        "data": ["calibrate", str(model), str(folder / "data.npy"), "-o", str(folder / "out.safetensors"), "--quiet"],
        "deploy": [*base, "--recipe", "magnitude", "--for", *rng.choice((("ort-cpu",), ("ort-cuda",), HALF))],
    }
    return what, more[command]


def tried(number: int, seed: int, given: Bases, folder: Path) -> Outcome:
    """One case in this process. Standard error goes to a file, so that what C++ says is heard as well."""
    from toastc.cli import main

    for name in (work := folder / "work", temp := folder / "temp"):
        name.mkdir(exist_ok=True)
        for path in name.iterdir():
            path.unlink()
    what, args = prepared(number, seed, given, work)
    before = found_in(work)
    with open(folder / "said", "w+b") as heard, open(heard.fileno(), "w", buffering=1, closefd=False) as text:
        kept = os.dup(1), os.dup(2)
        os.dup2(heard.fileno(), 1)
        os.dup2(heard.fileno(), 2)
        start = time.perf_counter()
        try:
            with redirect_stdout(text), redirect_stderr(text):
                status = main(args)
        finally:
            for own, old in enumerate(kept, start=1):
                os.dup2(old, own)
                os.close(old)
        seconds = time.perf_counter() - start
        heard.seek(0)
        said = heard.read().decode("utf-8", "replace")
    after, left = found_in(work), ""
    outputs = {name for name in after if name not in before}
    if any(after.get(name) != data for name, data in before.items()):
        left = "an input was changed"
    elif status or any(name.startswith(".") for name in outputs):
        left = f"left behind: {sorted(outputs)}" if outputs else ""
    elif found_in(temp):
        left = f"left in the folder for temporary files: {sorted(found_in(temp))}"
    return Outcome(number, what, status, said, seconds, left)


def worker(pipe: Connection, seed: int, given: Bases, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    (folder / "temp").mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "temp")
    parent = os.getppid()
    while os.getppid() == parent:  # and not for ever, if the one who watches is gone
        if pipe.poll(5):
            pipe.send(tried(pipe.recv(), seed, given, folder))


class Worker:
    """A process that tries cases, and what it is trying."""

    def __init__(self, seed: int, given: Bases, folder: Path) -> None:
        self.pipe, own = mp.Pipe()
        self.process = mp.get_context("fork").Process(target=worker, args=(own, seed, given, folder), daemon=True)
        self.process.start()
        own.close()
        self.number, self.since = -1, 0.0

    def start(self, number: int) -> None:
        self.number, self.since = number, time.monotonic()
        self.pipe.send(number)

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def outcomes(numbers: Iterator[int], seed: int, given: Bases, folder: Path, jobs: int) -> Generator[Outcome, None, None]:
    """Of every case, as they end; a worker that crashed or hangs is replaced."""
    fresh = lambda: Worker(seed, given, Path(tempfile.mkdtemp(dir=folder)))  # noqa: E731
    pool: list[Worker] = []
    for number in [n for _, n in zip(range(jobs), numbers, strict=False)]:
        pool.append(fresh())
        pool[-1].start(number)
    try:
        while pool:
            ready = wait([w.pipe for w in pool], timeout=1)
            for at, own in enumerate(list(pool)):
                late = time.monotonic() - own.since
                if own.pipe in ready:
                    try:
                        yield own.pipe.recv()
                    except EOFError:
                        own.process.join()
                        yield Outcome(own.number, "crash", own.process.exitcode or 1, "", late)
                        pool[at] = fresh()
                elif late > SLOW:
                    own.end()
                    yield Outcome(own.number, "hang", None, "", late)
                    pool[at] = fresh()
                else:
                    continue
                following = next(numbers, None)
                if following is not None:
                    pool[at].start(following)
                else:
                    pool[at].since = float("inf")
            done = [w for w in pool if w.since == float("inf")]
            for own in done:
                own.end()
                pool.remove(own)
    finally:
        for own in pool:
            own.end()


def run(count: int, seed: int = 0, jobs: int = 1, first: int = 0, say: bool = True) -> tuple[Row, list[Outcome]]:
    """Figures, and the bad ones."""
    import onnxruntime  # noqa: F401  before the workers are forked

    import toastc.compiler.sources.onnx
    import toastc.passes.prove.files  # noqa: F401

    ends: Counter[str] = Counter()
    bad: list[Outcome] = []
    slowest, begun = 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="reliability-fuzz-") as name:
        folder = Path(name)
        given = bases(folder)
        cases = outcomes(iter(range(first, first + count)), seed, given, folder, jobs)
        try:
            for one in cases:
                ends["bad" if one.bad else f"exit {one.status}"] += 1
                slowest = max(slowest, one.seconds)
                if one.bad:
                    bad.append(one)
                    if say:
                        print(f"  case {one.number} ({one.what}): {one.bad}", flush=True)
                if say:
                    progress("fuzz", ends.total(), count, len(bad))
        except KeyboardInterrupt:  # the figures so far are figures
            cases.close()
    row: dict[str, Any] = {
        "cases": ends.total(), "seed": seed, "first": first, "ends": dict(sorted(ends.items())), "bad": len(bad),
        "slowest_seconds": round(slowest, 2), "seconds": round(time.perf_counter() - begun),
    }  # fmt: skip
    return row, bad
