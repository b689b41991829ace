"""What a consumer is fitted to, batch by batch and as if seen at once."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest

import toastc
from toastc.calibration import open_data
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.passes import CollectMoments, MatchSites, RefitConsumers
from toastc.passes.recover import evidence as module
from toastc.passes.recover.evidence import Evidence
from toastc.passes.state import State, costs, run


def test_evidence_adds_up() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((600, 24)) + 30 * np.linspace(0, 1, 600)[:, None]).astype(np.float32)  # its mean drifts
    lacks = (rows[:, :5] * 2 + rng.standard_normal((600, 5)) + 7).astype(np.float32)
    parts = [Evidence.of(rows[a:b], lacks[a:b]) for a, b in ((0, 10), (10, 350), (350, 600))]
    made, count = parts[0] + parts[1] + parts[2], len(rows)
    apart, missing = rows - rows.mean(axis=0, dtype=float), lacks - lacks.mean(axis=0, dtype=float)
    assert made.sums.count == count and np.allclose(made.missing, lacks.sum(axis=0, dtype=float))
    assert np.allclose(made.cross, missing.T @ apart, rtol=1e-4)
    assert np.allclose(made.sums.scatter[0], apart.T @ apart, rtol=1e-4)


def test_how_many_batches_are_summed_together_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [np.random.default_rng(1).standard_normal((24, 3, models.IMAGE, models.IMAGE)).astype(np.float32)]

    def fits(together: float) -> list[np.ndarray]:
        monkeypatch.setattr(module, "TOGETHER", together)
        path = models.save(models.vit(), tmp_path / "model.onnx")
        plan = toastc.prune(
            path, ratios={"attention": 0.5, "ffn": 0.5, "round_to": 4}, data=data, recipe="default", verify=False
        ).plan
        return [choice.consumer.weight for choice in plan.choices.values() if getattr(choice, "consumer", None) is not None]

    apart, whole = fits(0.0), fits(1e9)
    assert len(apart) == len(whole) > 1
    assert all(np.allclose(a, b, atol=1e-4 * np.abs(b).max()) for a, b in zip(apart, whole, strict=True))


def test_what_it_will_cost_counts_the_images_it_will_take(tmp_path: Path) -> None:
    graph = OnnxGraph(load_model(models.save(models.vit(), tmp_path / "model.onnx")))
    data = [np.zeros((800, 3, models.IMAGE, models.IMAGE), np.float32)]
    state, _ = run([MatchSites()], State(graph, data=open_data(data[0], graph.input_sizes())))
    few, all_, by_default = (
        costs([RefitConsumers(**given)], state)["refit-consumers"]
        for given in ({"enough": 1}, {"images": 800, "enough": 10**6}, {})
    )
    assert few < by_default <= all_ == 2.5 * 800
    assert CollectMoments().cost(state) > 800
