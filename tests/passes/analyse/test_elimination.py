"""Backward elimination, channel by channel, and the roots it needs."""

from __future__ import annotations

import numpy as np
from drawn import correlated

from toastc.passes.analyse.elimination import eliminate
from toastc.passes.analyse.losses import roots


def test_backward_elimination_is_exact_one_by_one(rng: np.random.Generator) -> None:
    rows, weight = correlated(rng, 500, 1, 8), rng.standard_normal((8, 3))
    cov = np.cov(rows.reshape(500, 8).T, bias=True)
    order, curve = eliminate(cov, weight)
    for kept in range(1, 9):
        stay, gone = np.sort(order[-kept:]), np.sort(order[:-kept])
        across = cov[np.ix_(stay, gone)]
        rest = cov[np.ix_(gone, gone)] - across.T @ np.linalg.solve(cov[np.ix_(stay, stay)], across)
        assert np.isclose(np.trace(weight[gone].T @ rest @ weight[gone]), curve[kept], rtol=2e-2, atol=2e-3 * curve[0])
    assert (np.diff(curve) <= 1e-9).all()


def test_roots(rng: np.random.Generator) -> None:
    matrix = np.cov(rng.standard_normal((5, 50)))
    root, back = roots(matrix)
    assert np.allclose(root @ root, matrix)
    assert np.allclose(root @ back, np.eye(5))
