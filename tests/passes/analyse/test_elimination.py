"""Backward elimination, channel by channel, and the roots it needs."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import correlated

from toastc.passes.analyse.algebra import roots
from toastc.passes.analyse.covariances import Matrix
from toastc.passes.analyse.elimination import COARSE, eliminate
from toastc.system.vocabulary import Array


def test_backward_elimination_is_exact_one_by_one(rng: np.random.Generator) -> None:
    rows, weight = correlated(rng, 500, 1, 8), rng.standard_normal((8, 3))
    cov = np.cov(rows.reshape(500, 8).T, bias=True)
    order, curve = eliminate(Matrix(cov), weight)
    for kept in range(1, 9):
        stay, gone = np.sort(order[-kept:]), np.sort(order[:-kept])
        across = cov[np.ix_(stay, gone)]
        rest = cov[np.ix_(gone, gone)] - across.T @ np.linalg.solve(cov[np.ix_(stay, stay)], across)
        assert np.isclose(np.trace(weight[gone].T @ rest @ weight[gone]), curve[kept], rtol=2e-2, atol=2e-3 * curve[0])
    assert (np.diff(curve) <= 1e-9).all()


def channels(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A covariance as hidden channels have it: a long tail, loud and quiet ones, some that say the same, one that is silent."""
    rows = rng.standard_normal((4 * count, count)) @ (rng.standard_normal((count, count)) * np.arange(1, count + 1) ** -0.7)
    rows[:, : count // 8] = rows[:, count // 8 : count // 8 * 2] * 0.5
    rows *= 10 ** rng.uniform(-2, 1, count)
    rows[:, 5] = 3.0
    return np.cov(np.maximum(rows, 0).T, bias=True), rng.standard_normal((count, 24))


def one_at_a_time(cov: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What is lost when the least of all goes, again and again: in float64, the inverse updated each time."""
    inverse, weight = np.linalg.inv(cov + COARSE * np.diag(np.diag(cov)) + 1e-30 * np.eye(len(cov))), weight.copy()
    left, lost = list(range(len(cov))), [0.0]
    while len(left) > 1:
        cost = (weight[left] ** 2).sum(axis=1) / np.diag(inverse)[left]
        at = left.pop(int(np.argmin(cost)))
        lost.append(lost[-1] + cost.min())
        across = inverse[:, at] / inverse[at, at]
        weight -= np.outer(across, weight[at])
        inverse -= np.outer(across, inverse[at])
    return np.array(lost[::-1])


@pytest.mark.parametrize("kind", ["float64", "float32", "torch"])
def test_blocks_of_steps_in_single_precision_lose_what_single_steps_in_double_lose(kind: str, rng: np.random.Generator) -> None:
    cov, weight = channels(rng, 200)
    given: tuple[Array, Array] = (cov, weight)
    if kind != "float64":
        given = cov.astype(np.float32), weight.astype(np.float32)
    if kind == "torch":
        torch = pytest.importorskip("torch")
        given = torch.from_numpy(given[0]), torch.from_numpy(given[1])
    order, curve = eliminate(Matrix(given[0]), given[1])
    expected = one_at_a_time(cov, weight)
    widths = np.arange(20, 190)
    assert sorted(order) == list(range(200))
    assert np.allclose(curve[widths], expected[widths - 1], rtol=0.1, atol=1e-3 * curve[0])
    # what it says it loses is what those that stay can not make up for
    floor = cov + COARSE * np.diag(np.diag(cov)) + 1e-30 * np.eye(200)
    for kept in (50, 100, 150):
        stay, gone = np.sort(order[-kept:]), np.sort(order[:-kept])
        across = floor[np.ix_(stay, gone)]
        rest = floor[np.ix_(gone, gone)] - across.T @ np.linalg.solve(floor[np.ix_(stay, stay)], across)
        assert np.isclose(np.trace(weight[gone].T @ rest @ weight[gone]), curve[kept], rtol=2e-2, atol=1e-4 * curve[0])


def test_roots(rng: np.random.Generator) -> None:
    matrix = np.cov(rng.standard_normal((5, 50)))
    root, back = roots(matrix)
    assert np.allclose(root @ root, matrix)
    assert np.allclose(root @ back, np.eye(5))
