"""Linear algebra on covariances, of numpy or torch, where they live."""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace, device

from toastc.system.vocabulary import Array

LEAF = 128  # channels that a library inverts as well
LEAST = 1e-6  # of the mean variance, added to every variance before a system is solved


def floored(cov: Array, by: float = LEAST) -> Array:
    """With every variance a little larger; in place, because covariances are large."""
    xp, count = array_namespace(cov), cov.shape[0]
    each = xp.arange(count, device=device(cov))
    cov[each, each] += by * float(xp.linalg.trace(cov)) / count + 1e-30
    return cov


def like(numbers: np.ndarray, array: Array) -> Array:
    """Where the array lives, and of its type unless they are whole numbers."""
    dtype = None if numbers.dtype.kind in "iu" else array.dtype
    return array_namespace(array).asarray(numbers, dtype=dtype, device=device(array))


def tails(energy: np.ndarray) -> np.ndarray:
    """[groups, width + 1]: what is lost when the first k of each group stay."""
    return np.hstack([np.cumsum(energy[:, ::-1], axis=1)[:, ::-1], np.zeros((len(energy), 1))])


def roots(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The symmetric root, and its inverse on what is not zero."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    values = np.maximum(values, 0)
    inverse = np.where(values > values.max(initial=0) * 1e-10, 1 / np.sqrt(np.maximum(values, 1e-300)), 0)
    return (vectors * np.sqrt(values)) @ vectors.T, (vectors * inverse) @ vectors.T


def fitted(cross: Array, own: Array) -> Array:
    """cross . own^-1, with every variance a little larger; `own` is not to be used again."""
    return array_namespace(own).linalg.solve(floored(own), cross.T).T


def inverse_of(cov: Array) -> Array:
    """Of a positive definite matrix, nearly all of it in products of large ones: factored in double precision, where rounding
    tells, and put together in the matrix's own.
    """
    xp = array_namespace(cov)
    matrix = xp.astype(cov, xp.float64)  # a copy, also of what is double already
    made = xp.zeros_like(matrix)
    factor_inverse(matrix, made)
    return squared(xp.astype(made, cov.dtype))


def factor_inverse(matrix: Array, made: Array) -> None:
    """L^-1 of L L', put where zeros are; `matrix` is not to be used again."""
    xp, half = array_namespace(matrix), matrix.shape[0] // 2
    if 2 * half <= LEAF:
        made[...] = xp.linalg.inv(xp.linalg.cholesky(matrix))
        return
    first, second = made[:half, :half], made[half:, half:]
    factor_inverse(matrix[:half, :half], first)
    below = matrix[half:, :half] @ first.T
    matrix[half:, half:] -= below @ below.T
    factor_inverse(matrix[half:, half:], second)
    made[half:, :half] = second @ (below @ first)
    made[half:, :half] *= -1


def solved_lower(lower: Array, given: Array) -> Array:
    """L^-1 of this, which is not to be used again; nearly all of it in products of large matrices."""
    xp, half = array_namespace(lower), lower.shape[0] // 2
    if 2 * half <= LEAF:
        given[...] = xp.linalg.inv(lower) @ given
        return given
    first = solved_lower(lower[:half, :half], given[:half, :])
    given[half:, :] -= lower[half:, :half] @ first
    solved_lower(lower[half:, half:], given[half:, :])
    return given


def solved_upper(lower: Array, given: Array) -> Array:
    """L'^-1 of this, in the same way."""
    xp, half = array_namespace(lower), lower.shape[0] // 2
    if 2 * half <= LEAF:
        given[...] = xp.linalg.inv(lower).T @ given
        return given
    last = solved_upper(lower[half:, half:], given[half:, :])
    given[:half, :] -= lower[half:, :half].T @ last
    solved_upper(lower[:half, :half], given[:half, :])
    return given


def squared(lower: Array) -> Array:
    """L' L"""
    half = lower.shape[0] // 2
    if 2 * half <= LEAF:
        return lower.T @ lower
    made, below, last = array_namespace(lower).empty_like(lower), lower[half:, :half], lower[half:, half:]
    made[:half, :half] = squared(lower[:half, :half]) + below.T @ below
    made[half:, :half] = last.T @ below
    made[:half, half:], made[half:, half:] = made[half:, :half].T, squared(last)
    return made
