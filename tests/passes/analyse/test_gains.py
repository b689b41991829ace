"""How far an error reaches: measured by branching off where it arises, it is what a whole run with it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from drawn import batches

from toastc.calibration import open_data
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.passes import AnalyseLosses, CollectMoments, MatchSites, MeasureGains
from toastc.passes.analyse.simulate import residual
from toastc.passes.state import State, run


def state_of(graph: Any, data: Any) -> State:
    return run([MatchSites(), CollectMoments(), AnalyseLosses()], State(graph, data=open_data(data, graph.input_sizes())))[0]


def by_hand(state: State, name: str, images: np.ndarray) -> float:
    """The outputs of the whole model, run again with what half of the channels can not make up for."""
    tap, loss = MeasureGains.tap_of(state, name), state.losses[name]
    assert tap is not None
    probe = state.graph.probe([tap.value], nudge=[tap.value])
    width = max(1, round(0.5 * state.coupling(name).width))
    clean, (seen,) = probe({"image": images})
    moved, _ = probe({"image": images}, {tap.value: residual(tap, seen, loss.choose(width, range(state.coupling(name).groups)))})
    far = np.square(moved[0] - clean[0]).sum(axis=1) / np.square(clean[0]).sum(axis=1)
    return float((far**0.25).mean() ** 4 / loss.curve[width])


def test_branching_off_is_running_again(tmp_path: Path) -> None:
    path, images = models.save(models.vit(), tmp_path / "m.onnx"), batches(8)
    state = state_of(OnnxGraph(load_model(path)), images)
    gains = MeasureGains(least=8, always=True)(state).gains
    assert len(gains) == 3 * models.BLOCKS
    order = np.sort(np.random.default_rng(0).permutation(8))
    for name, gain in gains.items():
        assert gain == pytest.approx(by_hand(state, name, images[order]), rel=1e-3), name


def test_few_inputs_tell_nearly_as_much(tmp_path: Path) -> None:
    path = models.save(models.vit(), tmp_path / "m.onnx")
    state = state_of(OnnxGraph(load_model(path)), batches(64))
    whole, some = (MeasureGains(least=n, most=n, always=True)(state).gains for n in (64, 16))
    apart = np.log([some[name] / whole[name] for name in whole])
    assert np.abs(apart - apart.mean()).max() < 0.5


def test_a_model_of_a_fixed_batch_runs_as_many_as_it_takes(tmp_path: Path) -> None:
    model = models.vit()
    for value in (*model.graph.input, model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    path = models.save(model, tmp_path / "m.onnx")
    state = state_of(OnnxGraph(load_model(path)), batches(8))
    gains = MeasureGains(least=4, most=4, always=True)(state).gains
    assert len(gains) == 3 * models.BLOCKS and all(gain > 0 for gain in gains.values())
