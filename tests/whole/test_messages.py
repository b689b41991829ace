"""What is said when something can not be done, in one sentence that names it. Each reaches its message as a user would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from conftest import Command
from handwritten import saved, words

import toastc
from toastc.calibration import Preprocess
from toastc.system.errors import NothingToPrune, ToastcError

HALF = {"attention": 0.5, "ffn": 0.5, "round_to": 4}
BROKEN_CHAINS = [  # passes in an order that lacks something
    ("match-sites,score-weights,plan-ratios,fold-consumers", "fold-consumers: collect-moments must run before it"),
    ("match-sites,score-moments,plan-ratios", "score-moments: collect-moments must run before it"),
    ("match-sites,score-taylor,plan-ratios", "score-taylor: needs calibration data"),
    ("match-sites,score-weights{by=l2},plan-ratios,fold-consumers{by=mode}", "fold-consumers: by=mode; it is one of"),
    ("match-sites,score-moments{by=size}", "score-moments: by=size"),
    ("match-sites,collect-moments{synthetic=many}", "passes: collect-moments.synthetic must be int, got many"),
    ("match-sites,allocate-widths{uniform=perhaps}", "passes: allocate-widths.uniform must be bool, got perhaps"),
]
PRUNE = [  # what is asked for, and what is said
    ({"ratios": 0.5, "tokens": "h0,v1", "recipe": "nothing"}, "no recipe is called nothing"),
    ({"target": "macs=0.01", "recipe": "magnitude"}, "target: macs=0.01 can not be met; the smallest is macs=0."),
    ({"target": "latency=0.5", "recipe": "magnitude"}, "target: latency is spread by recipes that allocate widths"),
    ({"target": "latency=0.5", "tokens": "h1", "recipe": "synthetic"}, "latency is not told with merged tokens"),
    ({"tokens": "h0,h1:1,t0:2,h1"}, "no grid any more|already|same block"),
]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((8, 3, models.IMAGE, models.IMAGE)).astype(np.float32)


@pytest.mark.parametrize(("passes", "says"), BROKEN_CHAINS)
def test_passes_that_do_not_go_together(
    tiny: Path, tmp_path: Path, here: Command, ratio_file: Path, passes: str, says: str
) -> None:
    done = here(tiny, "-o", tmp_path / "o.onnx", "--ratios", ratio_file, "--passes", passes, "--quiet")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert says in done.stderr
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize(("asked", "says"), PRUNE, ids=lambda x: str(x)[:40])
def test_what_can_not_be_asked_for(tiny: Path, asked: dict[str, Any], says: str) -> None:
    with pytest.raises(ToastcError, match=says):
        toastc.prune(tiny, **asked)


def test_a_latency_needs_something_to_time(tiny: Path, images: np.ndarray) -> None:
    asked = "match-sites,collect-moments,analyse-losses,measure-gains,allocate-widths,plan-losses"
    with pytest.raises(ToastcError, match="latency needs the pass time-blocks before allocate-widths"):
        toastc.prune(tiny, target="latency=0.7", passes=asked, data=images)
    moments = toastc.measure(tiny, images, inputs=False)
    with pytest.raises(ToastcError, match="latency needs calibration data, or recipe synthetic"):
        toastc.prune(tiny, target="latency=0.7", moments=moments)


def test_moments_of_another_model(tiny: Path, tmp_path: Path, images: np.ndarray) -> None:
    other = models.vit()
    for node in other.graph.node:
        node.name = node.name.replace("blocks", "layers")
    path = models.save(other, tmp_path / "other.onnx")
    names = [site["name"] for site in toastc.inspect(path)["sites"]]
    assert all(name.startswith("layers") for name in names)
    with pytest.raises(ToastcError, match=r"moments: nothing is known of layers\.0"):
        toastc.prune(path, HALF, recipe="corp", moments=toastc.measure(tiny, images))


def test_data_of_another_name(tiny: Path, images: np.ndarray) -> None:
    with pytest.raises(ToastcError, match="the data has no input called image; it has pixels"):
        toastc.prune(tiny, HALF, data=[{"pixels": images}])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "one number for each channel, 1 or 3"),
        ({"mean": (0.5,), "std": (0.0,)}, "std is above zero"),
    ],
)
def test_a_preprocessing_that_is_none(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ToastcError, match=says):
        Preprocess(**given)


def test_a_model_that_takes_no_images(tmp_path: Path) -> None:
    path = saved(words(), tmp_path)
    assert toastc.prune(path, HALF, recipe="magnitude").report.verified["ok"]  # type: ignore[index]
    with pytest.raises(ToastcError, match="synthetic images fit models with one input of images"):
        toastc.prune(path, HALF, recipe="synthetic")
    photos = models.photos(tmp_path / "photos", 2)
    with pytest.raises(ToastcError, match=r"no square images but .*; give .npy, .npz or .safetensors"):
        toastc.prune(path, HALF, data=photos)


@pytest.mark.parametrize(("dtype", "says"), [("fp16", "computes nothing in float32 that could be fp16")])
def test_half_floats_of_half_floats(tmp_path: Path, dtype: str, says: str) -> None:
    path = models.save(models.vit("float16"), tmp_path / "half.onnx")
    with pytest.raises(ToastcError, match=says):
        toastc.prune(path, dtype=dtype, output=tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()


def test_nothing_to_put_into_8_bits(tmp_path: Path) -> None:
    path = models.save(models.convnet(), tmp_path / "conv.onnx")
    with pytest.raises(NothingToPrune, match="no "):
        toastc.prune(path, quantize="int8", output=tmp_path / "o.onnx")


def test_things_that_are_no_models(tiny: Path) -> None:
    with pytest.raises(ToastcError, match="can not prune a int; give a path"):
        toastc.prune(42, HALF)
    with pytest.raises(ToastcError, match="bench: give at least one batch size"):
        toastc.bench(tiny, tiny, batches=(), memory=False)


def test_what_the_runtime_says_is_not_cut_off(tmp_path: Path) -> None:
    """Its reason stands behind names of files and functions."""
    model = models.vit()
    model.ir_version = 99
    path = models.save(model, tmp_path / "of_the_future.onnx")
    with pytest.raises(ToastcError, match=r"can not load it .*Unsupported model IR version: 99"):
        toastc.bench(path, path, memory=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_provider_that_is_not_here(tiny: Path, here: Command) -> None:
    done = here("bench", tiny, tiny, "--provider", "cuda")
    assert done.returncode == 2
    assert "ONNX Runtime here has no CUDAExecutionProvider; install the matching extra (toastc[gpu])" in done.stderr


def test_figures_of_another_command(tiny: Path, tmp_path: Path, here: Command) -> None:
    (tmp_path / "b.json").write_text('{"dense": 1}')
    done = here("report", tiny, "-o", tmp_path / "p.html", "--bench", tmp_path / "b.json")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "b.json: is not what toastc bench --json writes:" in done.stderr and "is missing" in done.stderr
    (tmp_path / "c.json").write_bytes(b"\xff\xfe\x00")
    done = here("report", tmp_path / "c.json", "-o", tmp_path / "p.html")
    assert done.returncode == 2 and "c.json: can not be read" in done.stderr
