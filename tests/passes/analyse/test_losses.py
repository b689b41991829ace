"""Losses in closed form, against what they claim: the error that really arises, and that nothing redundant costs anything."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
from drawn import batches, correlated

import toastc
from toastc.calibration import Sums
from toastc.passes.analyse.covariances import Matrix
from toastc.passes.analyse.elimination import ROUNDING, eliminate, rounding_without
from toastc.passes.analyse.losses import energy, ranked, turned_products, turned_values
from toastc.passes.analyse.simulate import remade


def test_the_curve_of_products_is_the_error_of_the_logits(rng: np.random.Generator) -> None:
    q, k = correlated(rng, 400, 2, 6), correlated(rng, 400, 2, 6)
    k -= k.mean(0)
    loss = turned_products(Sums.of(q, False), Sums.of(k, False))
    for width in (1, 3, 6):
        choice = loss.choose(width, range(2))
        true = np.einsum("ngw,mgw->nmg", q, k)
        made = np.einsum("ngk,mgk->nmg", np.einsum("ngw,gkw->ngk", q, choice.left), np.einsum("mgw,gwk->mgk", k, choice.right))
        assert np.isclose(np.square(true - made).mean((0, 1)).sum(), loss.curve[width], rtol=1e-6, atol=1e-9 * loss.curve[0])


def test_no_index_set_beats_the_basis(rng: np.random.Generator) -> None:
    q, k = Sums.of(correlated(rng, 300, 2, 6), False), Sums.of(correlated(rng, 300, 2, 6), False)
    turned, picked = turned_products(q, k), ranked(energy(q, 6) * energy(k, 6))
    for width in range(1, 6):
        lost = 0.0
        for g, kept in enumerate(picked.choose(width, range(2)).index):  # type: ignore[union-attr]
            gone = np.ix_(np.delete(np.arange(6), kept), np.delete(np.arange(6), kept))
            lost += float((q.second[g][gone] * k.second[g][gone]).sum())
        assert turned.curve[width] <= lost + 1e-9


def test_the_curve_of_values_bounds_the_error_of_the_output(rng: np.random.Generator) -> None:
    """The refit across heads can only be better than every head for itself."""
    rows, weight = correlated(rng, 2000, 3, 5, rank=9), rng.standard_normal((15, 11))
    loss = turned_values(Sums.of(rows, True), weight)
    for width in (1, 2, 4):
        error = (remade(rows, loss.choose(width, range(3))) - rows).reshape(2000, -1) @ weight
        assert np.square(error).sum(axis=1).mean() <= 3 * loss.curve[width] + 1e-6 * loss.curve[0]


def rounded(rms: np.ndarray, weight: np.ndarray) -> float:
    """What rounding to one scale of 8 bits for all does to the output, through these weights."""
    return float((ROUNDING * rms.max(initial=0)) ** 2 / 12 * np.square(weight).sum())


def test_what_rounding_gains_without_a_channel(rng: np.random.Generator) -> None:
    rms, weight = np.abs(rng.standard_normal(7)), rng.standard_normal((7, 3))
    others = [(np.delete(rms, j), np.delete(weight, j, axis=0)) for j in range(7)]
    gains = [rounded(rms, w) - rounded(r, w) for r, w in others]
    assert np.allclose(rounding_without(rms, weight), gains) and np.count_nonzero(gains) == 1


def test_loud_channels_go_sooner_where_all_are_rounded(rng: np.random.Generator) -> None:
    """One of usual importance, but with a thousandfold values: by far the largest error of the rounded output is its doing."""
    rows, weight = correlated(rng, 500, 1, 8).reshape(500, 8), np.random.default_rng(0).choice([-1.0, 1.0], (8, 3))
    weight[2] *= 2  # not the first to go by what it says
    rows[:, 2], weight[2] = rows[:, 2] * 1000, weight[2] / 1000
    cov, rms = np.cov(rows.T, bias=True), np.sqrt(np.square(rows).mean(axis=0))
    errors = []
    for given in (None, rms):
        order, curve = eliminate(Matrix(cov), weight, given)
        stay = order[1:]
        errors.append(curve[7] + rounded(rms[stay], weight[stay]))
        assert (order[0] == 2) == (given is not None)
    assert errors[1] < errors[0] / 100


def redundant() -> dict[str, np.ndarray]:
    """The tiny ViT's weights, where half of all channels say what others say, or nothing new."""
    dense = models.weights()
    for i in range(models.BLOCKS):
        qkv, bias = dense[f"blocks.{i}.attn.qkv.weight"], dense[f"blocks.{i}.attn.qkv.bias"]
        width = models.DIM // models.HEADS
        for part in range(3):
            for head in range(models.HEADS):
                start = part * models.DIM + head * width
                half = slice(start, start + width // 2), slice(start + width // 2, start + width)
                for array in (qkv, bias):
                    turned = array.T if array.ndim == 2 and array.shape[0] != 3 * models.DIM else array
                    turned[half[1]] = 0.5 * turned[half[0]]
        fc1, own = dense[f"blocks.{i}.mlp.fc1.weight"], dense[f"blocks.{i}.mlp.fc1.bias"]
        rows = fc1 if fc1.shape[0] == len(own) else fc1.T
        rows[len(own) // 2 :], own[len(own) // 2 :] = rows[: len(own) // 2], own[: len(own) // 2]
    return dense


def test_what_is_redundant_goes_without_a_trace(data_folder: Path) -> None:
    path = models.save(models.vit(dense=redundant()), data_folder / "model.onnx")
    ratios = {"attention": {"qk": 0.5, "vo": 0.5}, "ffn": 0.5, "round_to": 4}
    passes = "collect-moments{share=1000},analyse-losses,allocate-widths,plan-losses"
    toastc.prune(path, ratios, data=[batches(512)], passes=passes, output=data_folder / "small.onnx")
    expected, got = models.run(path)[0], models.run(data_folder / "small.onnx")[0]
    assert np.allclose(got, expected, atol=1e-2 * np.abs(expected).max())
    toastc.prune(path, ratios, recipe="magnitude", output=data_folder / "other.onnx")
    assert not np.allclose(models.run(data_folder / "other.onnx")[0], expected, atol=1e-1 * np.abs(expected).max())


def test_data_beats_magnitudes(data_folder: Path) -> None:
    path = models.save(models.vit(), data_folder / "model.onnx")
    expected = models.run(path, 8)[0]
    errors = []
    for options in ({"data": data_folder / "data.npy"}, {"recipe": "magnitude"}):
        toastc.prune(path, {"attention": 0.5, "ffn": 0.5, "round_to": 4}, output=data_folder / "small.onnx", **options)
        errors.append(float(np.square(models.run(data_folder / "small.onnx", 8)[0] - expected).mean()))
    assert errors[0] < 0.7 * errors[1]
