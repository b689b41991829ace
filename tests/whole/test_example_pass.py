"""The package in examples/ is what the guide says: a pass of somebody else's, found through its entry point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import pytest

from toastc import open_graph
from toastc.passes import MatchSites
from toastc.passes.state import State, run

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "score-duplicates"
SPELLED = "score-duplicates{sharp=2},plan-ratios"
Toastc = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, installed into a folder of its own."""
    folder, target = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("installed")
    for file in EXAMPLE.glob("*.*"):  # building leaves files behind
        (folder / file.name).write_bytes(file.read_bytes())
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", target, folder]
    subprocess.run(list(map(str, install)), check=True, timeout=120)
    return target


def test_the_installed_pass_prunes_and_is_proven(
    installed: Path, tiny: Path, ratio_file: Path, tmp_path: Path, toastc: Toastc
) -> None:
    paths = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))
    out = tmp_path / "small.onnx"
    done = toastc(tiny, "-o", out, "--ratios", ratio_file, "--passes", SPELLED, "--json", env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verified"]["ok"] and report["after"]["macs"] < report["before"]["macs"]
    assert "score-duplicates" in report["seconds"]


def test_without_the_package_the_pass_is_not_known(tiny: Path, ratio_file: Path, toastc: Toastc) -> None:
    done = toastc(tiny, "--dry-run", "--ratios", ratio_file, "--passes", SPELLED)
    assert done.returncode == 2 and 'no pass is called "score-duplicates"' in done.stderr


def test_the_pass_is_short() -> None:
    assert len((EXAMPLE / "score_duplicates.py").read_text().splitlines()) <= 40


def test_a_channel_that_says_what_another_says_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from score_duplicates import ScoreDuplicates

    dense = models.weights()
    for name, axis in (("fc1.weight", 1), ("fc1.bias", 0), ("fc2.weight", 0)):
        array = np.moveaxis(dense[f"blocks.0.mlp.{name}"], axis, 0)
        array[7] = array[40]
    graph = open_graph(models.save(models.vit(dense=dense), tmp_path / "twins.onnx"))
    scores = run([MatchSites(), ScoreDuplicates()], State(graph))[0].scores
    assert set(scores) == {f"blocks.{i}.{c}" for i in (0, 1) for c in ("attn.qk", "attn.vo", "mlp.hidden")}
    assert set(np.argsort(scores["blocks.0.mlp.hidden"][0])[:2]) == {7, 40}


def test_the_guide_shows_the_package_as_it_is() -> None:
    guide = (EXAMPLE.parent.parent / "docs" / "guides" / "writing-a-pass.md").read_text()
    for name, language in (("score_duplicates.py", "python"), ("pyproject.toml", "toml")):
        assert f"```{language}\n{(EXAMPLE / name).read_text()}```" in guide, name
