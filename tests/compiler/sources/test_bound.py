"""What a bound promises holds for inputs that come later, whatever the model; by the backend, for files and for modules."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from oracle import leaf
from zoo_exports import quiet
from zoo_models import FAMILIES

import toastc
from toastc.calibration import Synthetic

torch.set_num_threads(1)
MODELS = ("hf_dinov2", "swin_tiny", "hf_clip_text", "hf_clip_vision", "hf_bert")
BOUND, BATCH = 0.1, 32
PHOTOS = np.concatenate([batch["x"] for batch in Synthetic({"x": (None, 3, 32, 32)}, 12 * BATCH)])


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    torch._dynamo.reset()
    logging.disable(logging.NOTSET)
    with caplog.at_level("INFO", "toastc"), torch.no_grad():
        yield


def inputs(name: str, number: int) -> tuple[torch.Tensor, ...]:
    """Pictures, or sentences of few words, of different lengths where there is a mask."""
    rng, made = np.random.default_rng(number), []
    for key, like in FAMILIES[name].inputs(False, 2).items():
        if key == "pixels":
            made.append(torch.from_numpy(PHOTOS[number * BATCH :][:BATCH].copy()))
        elif key == "input_ids":
            made.append(torch.from_numpy(rng.integers(1, 12, (BATCH, *like.shape[1:]))))
        else:
            length = rng.integers(6, like.shape[1] + 1, (BATCH, 1))
            made.append(torch.from_numpy((np.arange(like.shape[1]) < length).astype(np.int64)))
    return tuple(made)


def apart(made: list[Any], expected: list[Any]) -> float:
    a, b = (torch.cat([leaf(out).reshape(BATCH, -1) for out in outs]) for outs in (made, expected))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", MODELS)
def test_what_the_backend_observed_holds_later(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with quiet():
        model = FAMILIES[name].small().eval()
    options = {"then": "eager", "observe": 6 * BATCH, "target": f"error={BOUND}"}
    logging.disable(logging.NOTSET)
    compiled = torch.compile(model, backend="toastc", options=options)
    for number in range(6):
        compiled(*inputs(name, number))
    later = [inputs(name, number) for number in range(6, 12)]
    off = apart([compiled(*given) for given in later], [model(*given) for given in later])
    assert 1e-5 < off < BOUND, caplog.text


@pytest.mark.parametrize("name", ["hf_dinov2", "hf_bert"])
def test_the_same_of_a_module(name: str) -> None:
    with quiet():
        model = FAMILIES[name].small().eval()
        data = [inputs(name, number) for number in range(6)]
        result = toastc.prune(model, target=f"error={BOUND}", data=data, example_inputs=inputs(name, 0), quiet=True)
    later = [inputs(name, number) for number in range(6, 12)]
    off = apart([result.model(*given) for given in later], [model(*given) for given in later])
    assert 1e-5 < off < BOUND
    assert type(result.model).__name__ == type(model).__name__
