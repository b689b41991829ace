"""What the tests of the command share: a tiny model, and the command itself, in a process of its own or in this one."""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from drawn import batches
from reliable import RATIOS

Command = Callable[..., "subprocess.CompletedProcess[str]"]
ZooFile = Callable[..., Path]
Exported = Callable[[str, Callable[[Path], object]], Path]
NUMBERS = itertools.count()
PLAIN = ("--recipe", "magnitude")  # the quickest, where it does not matter


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look through it again and again."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plain tiny ViT as a file."""
    return models.save(models.vit(), tmp_path_factory.mktemp("tiny") / "tiny.onnx")


@pytest.fixture(autouse=True)
def _plans_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found that an earlier test, or somebody's own run, has left."""
    monkeypatch.setenv("TOASTC_CACHE", str(tmp_path_factory.getbasetemp() / f"plans-{next(NUMBERS)}"))


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """A folder with `data.npy`: images for the tiny ViT."""
    np.save(tmp_path / "data.npy", batches())
    return tmp_path


@pytest.fixture
def rng() -> np.random.Generator:
    """Each test draws the same numbers, whichever ran before it."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session", autouse=True)
def _interrupts_arrive() -> None:
    """Under `nohup`, in the background of a script or from a daemon SIGINT is ignored, and every child inherits that.

    A command that is tested for what an interrupt does must get it wherever the tests were started.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ratio_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ratios") / "r.json"
    path.write_text(json.dumps(RATIOS))
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """`exported(name, make)`: a file that `make` writes into a folder, once for all tests of a run; not to be written to."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    shared.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], object]) -> Path:
        if not (shared / name).exists():
            with tempfile.TemporaryDirectory(dir=shared) as folder:
                make(Path(folder))
                os.replace(Path(folder) / name, shared / name)
        return shared / name

    return get


@pytest.fixture(scope="session")
def zoo_file(exported: Exported) -> ZooFile:
    """`zoo_file(family, variant)`: a small model of the zoo."""

    def get(name: str, variant: str = "dynamo20-dyn") -> Path:
        from zoo_exports import make_variant, quiet
        from zoo_models import FAMILIES

        def make(folder: Path) -> None:
            with quiet():
                assert make_variant(FAMILIES[name], FAMILIES[name].small(), variant, folder) < 1e-4, (
                    "the exporter broke the model"
                )

        return exported(f"{name}.{variant}.onnx", make)

    return get


@pytest.fixture(scope="session")
def deit(zoo_file: ZooFile) -> Path:
    """The small DeiT of the zoo as a file."""
    return zoo_file("deit_tiny")


@pytest.fixture
def temp(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, for this test alone."""
    folder = tmp_path_factory.mktemp("temp")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def unwatched() -> dict[str, str]:
    """The environment of a process that may write next to nothing: coverage, which goes along, would need room as well."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


@pytest.fixture(scope="session")
def toastc() -> Command:
    """`toastc(*args)`: the command in a process of its own."""

    def call(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "toastc", *map(str, args)]
        return subprocess.run(command, **{"capture_output": True, "text": True, "timeout": 120, "check": False} | options)

    return call


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Command:
    """`here(*args)`: the command in this process, which is faster; nothing may escape from it but an exit status."""
    from toastc.cli import main

    def call(*args: object) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        try:
            status: Any = main([str(a) for a in args])
        except SystemExit as stop:  # argparse
            status = stop.code
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(list(map(str, args)), status, out, err)

    return call
