"""The reference trainer, on folders made here: end to end, killed and resumed, in two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import train
import train_loop
from PIL import Image
from safetensors.torch import load_file, save_file

from toastc.training import finetune

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]
MODEL = ["--model", "shallow_vit", "--image-size", "32", "--workers", "0", "--log-every", "1", "--prune-recipe", "magnitude"]
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


@timm.models.register_model
def shallow_vit(pretrained: bool = False, **options: Any) -> torch.nn.Module:
    """timm's test_vit with two blocks: every run captures it again and again."""
    return timm.create_model("test_vit", depth=2, **options)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's layout: three classes that differ in colour, 12 images each to train on and 4 to test on."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for name, colour in zip(("n01", "n02", "n03"), COLOURS, strict=True):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(np.array(colour) + rng.integers(-60, 60, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    (folder / "r.json").write_text(json.dumps({"attention": 0.5, "ffn": 0.5, "round_to": 4}))
    torch.manual_seed(0)
    save_file(timm.create_model("shallow_vit", img_size=32, num_classes=3).state_dict(), folder / "w.safetensors")
    return folder


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    own = ["--data", str(data), "--weights", str(data / "w.safetensors"), "--ratios", str(data / "r.json"), "--out", str(out)]
    return [*own, *MODEL, *more]


def log_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "log.json").read_text())


# ---- end to end ------------------------------------------------------------------------------------------


def test_from_a_dense_model_to_a_tuned_one(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    more = ("--lr", "2e-3", "--min-lr", "1e-5", "--warmup", "3", "--distill", "0.01")
    given = arguments(data, out, "--recipe", "light", "--epochs", "8", "--batch", "12", *more)
    assert train.main(given) == 0
    log = log_of(out)
    assert [s[0] for s in log["steps"]] == list(range(1, 25))
    losses, rates = [s[1] for s in log["steps"]], [s[2] for s in log["steps"]]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert rates[:4] == sorted(rates[:4])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(2e-3, rel=0.1)
    assert 1e-5 <= rates[-1] < 1e-4
    assert log["tuned"] == log["epochs"][-1]["accuracy"] > max(log["pruned"], 0.6)
    assert log["macs"][1] < log["macs"][0] and log["params"][1] < log["params"][0]
    assert f"tuned {100 * log['tuned']:.2f} %" in capsys.readouterr().out
    dense = timm.create_model("shallow_vit", img_size=32, num_classes=3).eval()
    tuned, pruned = (finetune.load(dense, out / f"{name}.safetensors") for name in ("tuned", "pruned"))
    assert sum(p.numel() for p in tuned.parameters()) == log["params"][1]
    assert not torch.equal(tuned.get_parameter("head.weight"), pruned.get_parameter("head.weight"))
    assert torch.equal(load_file(data / "w.safetensors")["norm.weight"], pruned.get_parameter("norm.weight"))
    assert train.main(given) == 2  # it would run over a run that is there
    assert "--resume" in capsys.readouterr().err


def test_masked_training_ends_in_the_same_function(data: Path, tmp_path: Path) -> None:
    more = ("--masked", "--recipe", "toast", "--epochs", "2", "--batch", "12")
    assert train.main(arguments(data, tmp_path, *more)) == 0
    log = log_of(tmp_path)
    state = {k.removeprefix("model."): t for k, t in load_file(tmp_path / "last.safetensors").items() if k.startswith("model.")}
    masked = timm.create_model("shallow_vit", img_size=32, num_classes=3).eval()
    masked.load_state_dict(state)
    tuned = finetune.load(masked, tmp_path / "tuned.safetensors")
    assert log["params"][1] == sum(p.numel() for p in tuned.parameters()) < sum(p.numel() for p in masked.parameters())
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(tuned(x), masked(x), atol=1e-5)
    assert log["tuned"] == log["epochs"][-1]["accuracy"]


# ---- killed and resumed ----------------------------------------------------------------------------------


class Killed(BaseException):
    """As if the process had been killed: nothing catches it."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def at(step: int) -> None:
        whole = train_loop.Loop.step

        def killing(loop: train_loop.Loop, *args: Any) -> Any:
            if loop.state.step == step:
                monkeypatch.setattr(train_loop.Loop, "step", whole)
                raise Killed
            return whole(loop, *args)

        monkeypatch.setattr(train_loop.Loop, "step", killing)

    return at


def test_killed_and_resumed_is_as_if_nothing_had_been(data: Path, tmp_path: Path, kill: Callable[[int], None]) -> None:
    """All that is random is on: RandAugment, erasing, mixup, cutmix, drop-path. Three steps an epoch."""
    more = ("--recipe", "toast", "--epochs", "3", "--batch", "12", "--save-every", "2")
    assert train.main(arguments(data, tmp_path / "whole", *more)) == 0
    broken = arguments(data, tmp_path / "broken", *more)
    for step in (1, 5):  # before there is a checkpoint; in the middle of an epoch, a step behind a checkpoint
        kill(step)
        with pytest.raises(Killed):
            train.main([*broken, "--resume"])
    assert train.main([*broken, "--resume", "--workers", "2"]) == 0
    whole, resumed = log_of(tmp_path / "whole"), log_of(tmp_path / "broken")
    assert resumed["steps"] == whole["steps"]
    assert len(whole["steps"]) == 9
    assert resumed == whole
    for name in ("last", "tuned"):
        a, b = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "broken"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_compactors_find_the_channels_with_merged_tokens(data: Path, tmp_path: Path, kill: Callable[[int], None]) -> None:
    """Killed in the middle as well, after the masks were drawn."""
    own = ["--data", str(data), "--weights", str(data / "w.safetensors"), "--target", "macs=0.6", "--compact", "--tokens", "h1"]
    own += [*MODEL, "--recipe", "light", "--epochs", "3", "--batch", "12", "--save-every", "1", "--compact-after", "2"]
    own += ["--redraw", "3", "--masked-penalty", "0.05", "--compact-lr", "0.05"]
    assert train.main([*own, "--out", str(tmp_path / "whole")]) == 0
    kill(4)
    with pytest.raises(Killed):
        train.main([*own, "--out", str(tmp_path / "broken")])
    assert train.main([*own, "--out", str(tmp_path / "broken"), "--resume"]) == 0
    whole, resumed = log_of(tmp_path / "whole"), log_of(tmp_path / "broken")
    assert resumed == whole and len(whole["steps"]) == 9
    dense = timm.create_model("shallow_vit", img_size=32, num_classes=3).eval()
    tuned = finetune.load(dense, tmp_path / "whole" / "tuned.safetensors")
    plan = tuned.meta[finetune.PLAN]
    assert plan.merges and {n.rpartition(".")[2] for n in plan.choices} >= {"hidden"}
    assert whole["macs"][1] < 0.6 * whole["macs"][0]


def test_a_checkpoint_that_does_not_fit(
    data: Path, tmp_path: Path, kill: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(data, tmp_path, "--epochs", "1", "--batch", "12", "--save-every", "1", "--resume")
    kill(2)
    with pytest.raises(Killed):
        train.main(given)
    assert train.main([*given, "--lr", "0.5"]) == 2
    assert "lr 0.001, now 0.5" in capsys.readouterr().err
    last = tmp_path / "last.safetensors"
    for content in (last.read_bytes()[:1000], (tmp_path / "pruned.safetensors").read_bytes()):
        last.write_bytes(content)
        assert train.main(given) == 2
        assert "no checkpoint" in capsys.readouterr().err


# ---- several processes -----------------------------------------------------------------------------------


def test_two_processes_do_what_one_does(data: Path, tmp_path: Path) -> None:
    """With batches half as large, and without what is drawn for each process alone."""
    save_file(timm.create_model("test_vit", img_size=32, num_classes=3).state_dict(), tmp_path / "w.safetensors")
    more = ("--recipe", "light", "--epochs", "2", "--limit-steps", "4", "--lr", "3e-4", "--warmup", "0")
    more += ("--model", "test_vit", "--weights", str(tmp_path / "w.safetensors"))  # which other processes know
    assert train.main(arguments(data, tmp_path / "one", *more, "--batch", "12")) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "tools/train.py"]
    given = arguments(data, tmp_path / "two", *more, "--batch", "6")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *given], capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tuned") == 2  # once in the last line, once in the name of the file: only one process prints
    one, two = (load_file(tmp_path / run / "tuned.safetensors") for run in ("one", "two"))
    before = load_file(tmp_path / "one" / "pruned.safetensors")
    assert not torch.equal(one["head.weight"], before["head.weight"])
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=2e-5), name
    first, second = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert second["settings"]["processes"] == "2"
    assert [e["step"] for e in second["epochs"]] == [3, 4]
    assert (first["dense"], first["pruned"]) == (second["dense"], second["pruned"])


# ---- what is said ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--data": "nowhere"}, "no folder with train/"),
        ({"--data": "cifar10:nowhere"}, "data_batch_1.png is missing"),
        ({"--weights": "nowhere"}, "--weights"),
        ({"--batch": "64"}, "36 training images do not fill"),
        ({"--ratios": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_bad_input_is_one_line(
    change: dict[str, str], says: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(data, tmp_path, "--epochs", "1", "--batch", "12")
    for name, value in change.items():
        given[given.index(name) + 1] = value
    assert train.main(given) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for given, words in ((["--help"], "torchrun"), (["--data", "x"], "--model"), ([*MODEL, "--out", "x"], "--data")):
        with pytest.raises(SystemExit):
            train.main(given)
        assert words in "".join(capsys.readouterr())
    with pytest.raises(SystemExit):
        train.main(["--data", "x", "--model", "m", "--out", "o", "--target", "macs=0.5", "--batch", "7"])
    assert "even" in capsys.readouterr().err
    light = train.parsed(["--data", "x", "--model", "m", "--out", "o", "--target", "macs=0.5", "--recipe", "light", "--lr", "1"])
    assert (light.mixup, light.lr) == (0.0, 1.0)
    paper = train.parsed(["--data", "x", "--model", "m", "--out", "o", "--target", "macs=0.5"])
    assert (paper.lr, paper.min_lr, paper.weight_decay, paper.drop_path) == (1e-3, 1e-5, 1e-4, 0.1)
    assert (paper.smoothing, paper.mixup, paper.cutmix) == (0.1, 0.8, 1.0)
