"""Covariances of few vectors: what is asked of them is what a matrix of all channels would say."""

from __future__ import annotations

import numpy as np
import pytest

from toastc.calibration.moments import Sums
from toastc.passes.analyse.algebra import like
from toastc.passes.analyse.covariances import Matrix, Rows, covariance_of, shrunken
from toastc.passes.analyse.elimination import COARSE, eliminate
from toastc.system.arrays import as_array
from toastc.system.vocabulary import Array

CHANNELS = 120


@pytest.fixture(params=["float64", "float32", "torch"])
def sums(request: pytest.FixtureRequest, rng: np.random.Generator) -> Sums:
    """Of 70 vectors in three parts: loud and quiet channels, some that say the same, one that is silent."""
    rows = rng.standard_normal((70, CHANNELS)) @ (rng.standard_normal((CHANNELS, CHANNELS)) * np.arange(1, CHANNELS + 1) ** -0.7)
    rows[:, :10] = 0.5 * rows[:, 10:20]
    rows = (rows + 1) * 10 ** rng.uniform(-2, 1, CHANNELS)
    rows[:, 5] = 3.0
    given: Array = rows[:, None, :].astype(np.float64 if request.param == "float64" else np.float32)
    if request.param == "torch":
        given = pytest.importorskip("torch").from_numpy(given)
    return Sums.of(given[:20], True) + Sums.of(given[20:30], True) + Sums.of(given[30:], True)


def close(a: Array, b: Array, tolerance: float = 2e-3) -> bool:
    one, other = as_array(a), as_array(b)
    return bool(np.abs(one - other).max() <= tolerance * np.abs(other).max())


def test_they_are_a_matrix_that_is_never_made(sums: Sums) -> None:
    cov, whole = covariance_of(sums), Matrix(shrunken(sums))
    assert isinstance(cov, Rows) and len(cov.rows) < CHANNELS
    assert close(cov.rows.T @ cov.rows + like(np.diag(as_array(cov.own)), cov.own), whole.matrix, 1e-5)
    assert close(cov.variances, whole.variances, 1e-5)
    for kept in (60, 100):  # fewer than vectors, and more
        stay, gone = np.arange(kept), np.arange(kept, CHANNELS)
        assert close(cov.fit(gone, stay), whole.fit(gone, stay))


def test_so_is_their_inverse_also_when_channels_went(sums: Sums, rng: np.random.Generator) -> None:
    cov, whole = covariance_of(sums), Matrix(shrunken(sums))
    loud = as_array(cov.variances) ** 0.5
    scale = like(np.where(loud > 0, loud, 1), cov.variances)
    one, other = cov.inverse(scale, COARSE), whole.inverse(scale, COARSE)
    at = like(np.array([0, 7, 64]), scale)
    assert close(one.diagonal(), other.diagonal()) and close(one.columns(at), other.columns(at))
    stay = np.delete(np.arange(CHANNELS), [3, 4, 99])
    panels = like(rng.standard_normal((len(stay), 3)), scale)
    one, other = one.without(like(stay, scale), panels), other.without(like(stay, scale), panels)
    assert close(one.diagonal(), other.diagonal()) and close(one.columns(at), other.columns(at))


def test_the_same_is_lost(sums: Sums, rng: np.random.Generator) -> None:
    weight = like(rng.standard_normal((CHANNELS, 9)), sums.outer)
    (order, curve), (_, expected) = (eliminate(cov, weight) for cov in (covariance_of(sums), Matrix(shrunken(sums))))
    assert sorted(order) == list(range(CHANNELS)) and np.allclose(curve, expected, rtol=2e-2, atol=1e-4 * expected[0])
