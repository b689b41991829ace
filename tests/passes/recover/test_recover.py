"""What makes up for a cut: means, folds, and consumers fitted anew; and the scores they go with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

import toastc
from toastc.calibration import open_data
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.passes import RECIPES, CollectMoments, FoldConsumers, MatchSites, PlanRatios, RefitConsumers, ScoreMoments
from toastc.passes.analyse.simulate import surviving
from toastc.passes.analyse.streams import flat, stream_behind
from toastc.passes.match.taps import taps_of
from toastc.passes.recover.jobs import jobs_of
from toastc.passes.state import State, run
from toastc.plans.ratios import parse
from toastc.system.errors import ToastcError

RATIOS = {"attention": 0.5, "ffn": 0.5, "round_to": 4}


def images(count: int, seed: int) -> np.ndarray:
    """Smooth ones, so that channels have something in common."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.standard_normal((count, 3, models.IMAGE, models.IMAGE)), axis=3).astype(np.float32) / 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return models.save(models.vit(), tmp_path / "model.onnx")


def error(path: Path, small: Path) -> float:
    """Of the outputs, on images no pass has seen."""
    expected, got = (OnnxGraph(load_model(p)).probe([])({"image": images(64, 99)})[0][0] for p in (path, small))
    return float(np.square(got - expected).sum() / np.square(expected).sum())


def collected(path: Path) -> State:
    graph = OnnxGraph(load_model(path))
    state = State(graph, parse(RATIOS), data=open_data([images(512, 1)], graph.input_sizes()))
    return run([MatchSites(), CollectMoments(share=1e9)], state)[0]


@pytest.mark.parametrize("by", ["energy", "magnitude", "variance", "variance-norm"])
def test_scores_are_what_their_names_say(path: Path, by: str) -> None:
    state = ScoreMoments(by)(collected(path))
    tap = state.taps["blocks.1.mlp.hidden/out"]
    rows = tap.rows(state.graph.probe([tap.value])({"image": images(512, 1)})[1][0]).astype(np.float64)[:, 0]
    weight = models.weights()["blocks.1.mlp.fc2.weight"]
    expected = {
        "energy": (rows**2).mean(0),
        "magnitude": np.abs(rows).mean(0),
        "variance": rows.var(0),
        "variance-norm": rows.var(0) * (weight**2).sum(1),
    }
    assert np.allclose(state.scores["blocks.1.mlp.hidden"][0], expected[by], rtol=1e-3)
    q = state.taps["blocks.0.attn.qk/q"]
    queries = q.rows(state.graph.probe([q.value])({"image": images(512, 1)})[1][0]).astype(np.float64)
    score = state.scores["blocks.0.attn.qk"]
    assert score.shape == queries.shape[1:]
    assert (score > 0).all()


def test_a_mean_goes_into_the_bias(path: Path) -> None:
    """b' = b + W[gone] E[h_gone], and nothing else changes."""
    state = run([ScoreMoments("variance"), PlanRatios(), FoldConsumers("mean")], collected(path))[0]
    choice, sums = state.plan.get("blocks.0.mlp", "hidden"), state.moments["blocks.0.mlp.hidden/out"]  # type: ignore[index]
    assert choice is not None
    assert choice.exact
    gone = np.setdiff1d(np.arange(models.HIDDEN), choice.index[0])
    assert np.allclose(choice.shift[0, gone], sums.mean[0, gone])  # type: ignore[index]
    assert (choice.shift[0, choice.index[0]] == 0).all()  # type: ignore[index]


def test_a_fold_is_least_squares(path: Path) -> None:
    state = run([ScoreMoments("energy"), PlanRatios(), FoldConsumers()], collected(path))[0]
    tap = state.taps["blocks.0.mlp.hidden/out"]
    rows = tap.rows(state.graph.probe([tap.value])({"image": images(512, 1)})[1][0]).astype(np.float64)[:, 0]
    choice = state.plan.get("blocks.0.mlp", "hidden")
    assert choice is not None
    kept = choice.index[0]
    with_one = np.column_stack([rows[:, kept], np.ones(len(rows))])
    best = np.linalg.lstsq(with_one, rows, rcond=None)[0]
    made = rows[:, kept] @ choice.fold.T + choice.shift.ravel()  # type: ignore[union-attr]
    least, got = np.square(rows - with_one @ best).sum(), np.square(rows - made).sum()
    assert got <= 1.05 * least
    qk = state.plan.get("blocks.0.attn", "qk")
    assert qk is not None
    assert not qk.exact


def test_every_recovery_is_better_than_the_one_before(path: Path, tmp_path: Path) -> None:
    head = "collect-moments{share=1000},score-moments{by=energy},plan-ratios"
    errors = []
    for tail in ("", ",fold-consumers{by=mean}", ",fold-consumers", ",fold-consumers,refit-consumers"):
        toastc.prune(path, RATIOS, data=[images(512, 1)], passes=head + tail, output=tmp_path / "small.onnx")
        errors.append(error(path, tmp_path / "small.onnx"))
    assert errors[1] < errors[0]
    assert errors[2] < 0.7 * errors[1]
    assert errors[3] < 0.95 * errors[2]


def test_a_refitted_consumer_leaves_nothing_its_channels_could_tell(path: Path, tmp_path: Path) -> None:
    """In the real pruned model: the error of the stream is orthogonal to the channels that the consumer takes."""
    data = images(192, 1)
    passes = (*RECIPES["calibrated"][:-1], RefitConsumers(enough=48))  # or fewer of them are looked at
    toastc.prune(path, RATIOS, data=[data], passes=passes, output=tmp_path / "small.onnx")
    whole, small = (collected(p) for p in (path, tmp_path / "small.onnx"))
    seen = 0
    for site in small.sites:
        coupling = site.couplings[-1]
        dense = next(s for s in whole.sites if s.name == site.name).couplings[-1]
        ends = []
        for state, own in ((whole, dense), (small, coupling)):
            consumer = next(m for m in own.members if m.role == "out").operand[0]  # type: ignore[index]
            ends.append(stream_behind(state.graph, consumer))
        tap = taps_of(small.matched, site)[f"{coupling.name}/out"]
        stream, channels = small.graph.probe([ends[1], tap.value])({"image": data})[1]
        apart = flat(whole.graph.probe([ends[0]])({"image": data})[1][0]) - flat(stream)
        apart = apart.astype(np.float64) - apart.mean(0)
        rows = flat(tap.rows(channels).reshape(len(apart), -1)).astype(np.float64)
        rows -= rows.mean(0)
        told = apart.T @ rows / (np.linalg.norm(apart) * np.linalg.norm(rows))
        assert np.linalg.norm(told) < 3e-2
        assert np.abs(apart).max() > 1e-3, "or there was nothing to tell"
        seen += 1
    assert seen == 2 * models.BLOCKS


def test_the_simulated_channels_are_those_of_the_pruned_model(path: Path, tmp_path: Path) -> None:
    data = images(32, 1)
    result = toastc.prune(path, RATIOS, data=[data], output=tmp_path / "small.onnx")
    whole, small = (collected(p) for p in (path, tmp_path / "small.onnx"))
    whole = replace(whole, plan=result.plan)
    job = next(job for job in jobs_of(whole) if job.name == "blocks.0.attn.vo")
    tap = small.taps["blocks.0.attn.vo/out"]
    # queries are cut before, so that values are compared with the queries left whole
    only_values = toastc.prune(path, plan=toastc.Plan({job.name: job.choice}), output=tmp_path / "v.onnx")
    assert only_values.report.verified is not None
    small = collected(tmp_path / "v.onnx")
    tap = small.taps["blocks.0.attn.vo/out"]
    got = flat(tap.rows(small.graph.probe([tap.value])({"image": data})[1][0]).reshape(-1, tap.index.size))
    rows = job.tap.rows(whole.graph.probe([job.tap.value])({"image": data})[1][0])
    assert np.allclose(got, surviving(rows, job.choice, job.groups), atol=1e-4)


def test_published_recipes_need_data_and_say_so(path: Path) -> None:
    for recipe in ("toast", "vbp", "corp", "calibrated"):
        with pytest.raises(ToastcError, match="needs calibration data"):
            toastc.prune(path, RATIOS, recipe=recipe)


@pytest.mark.parametrize("recipe", ["toast", "vbp", "corp", "svd"])
@pytest.mark.parametrize("what", [{"ratios": RATIOS}, {"target": "macs=0.8"}])
def test_published_recipes_are_proven(path: Path, recipe: str, what: dict[str, Any]) -> None:
    result = toastc.prune(path, **what, recipe=recipe, data=[images(64, 1)])
    assert result.report.verified is not None
    assert result.report.verified["ok"]
    assert result.report.after.macs < result.report.before.macs


def test_gradients_of_a_file_there_are_none(path: Path) -> None:
    with pytest.raises(ToastcError, match="no gradients"):
        toastc.prune(path, RATIOS, recipe="taylor", data=[images(8, 1)])
