"""passes.analyse.algebra: what is solved by products of large matrices is what a library solves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from toastc.passes.analyse.algebra import LEAF, floored, inverse_of, solved_lower, solved_upper
from toastc.system.arrays import as_array


@pytest.mark.parametrize("size", [1, 2, LEAF, LEAF + 1, 3 * LEAF + 5])
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_an_inverse_of_halves_is_the_inverse(size: int, make: object) -> None:
    rng = np.random.default_rng(size)
    rows = rng.standard_normal((4 * size, size)) + 30 * rng.standard_normal((4 * size, 1))
    cov = (rows.T @ rows / len(rows)).astype(np.float32)
    cov = (cov + cov.T) / 2
    expected = np.linalg.inv(cov.astype(np.float64))
    made = inverse_of(make(cov))  # type: ignore[operator]
    assert type(made) is type(make(cov)) and made.dtype == make(cov).dtype  # type: ignore[operator]
    assert np.abs(as_array(made) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_triangles_are_solved_by_halves(make: object) -> None:
    rng, size = np.random.default_rng(0), 3 * LEAF + 5
    lower, given = np.tril(rng.standard_normal((size, size)) / size) + np.eye(size), rng.standard_normal((size, 7))
    for solved, matrix in ((solved_lower, lower), (solved_upper, lower.T)):
        made = solved(make(lower), make(given.copy()))  # type: ignore[operator]
        assert np.allclose(matrix @ as_array(made), given)


def test_a_floor_is_added_whatever_way_a_matrix_lies_in_memory() -> None:
    for matrix in (np.eye(3), np.ones((3, 5))[:, [0, 1, 2]], np.asfortranarray(np.ones((3, 3)))):
        before = matrix.copy()
        assert np.allclose(floored(matrix, 0.5) - before, 0.5 * np.trace(before) / 3 * np.eye(3))
