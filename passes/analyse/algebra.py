"""Linear algebra on covariances, of numpy or torch, where they live."""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace, device

from toastc.calibration.moments import Sums
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


def shrunken(sums: Sums) -> Array:
    """The covariance, drawn towards its diagonal as far as the sample is too small for it (as Ledoit and Wolf do).

    What never varied stays at zero: a dead channel costs nothing to lose.
    """
    xp, mean = array_namespace(sums.scatter), sums.mean
    cov = sums.covariance
    cov = cov[0] if cov.shape[0] == 1 else block_diagonal(cov)
    size, variances = cov.shape[0], xp.asarray(xp.linalg.diagonal(cov), copy=True)
    squares = float(xp.sum(xp.vecdot(cov, cov)))
    apart = squares - float(xp.sum(variances)) ** 2 / size
    raw = squares + 2 * float(like(mean.ravel(), cov) @ cov @ like(mean.ravel(), cov)) + float((mean**2).sum()) ** 2
    noise = max(sums.energy2 / sums.count - raw, 0.0) / sums.count
    share = min(1.0, noise / apart) if apart > 0 else 0.0
    cov *= 1 - share
    eps = float(xp.finfo(cov.dtype).eps)  # what varies less than its numbers can tell does not
    xp.reshape(cov, (-1,))[:: size + 1] = variances + like((4 * eps) ** 2 * sums.squares.ravel() / sums.count, cov)
    return cov


def block_diagonal(blocks: Array) -> Array:
    xp = array_namespace(blocks)
    groups, width, _ = blocks.shape
    whole = xp.zeros((groups * width, groups * width), dtype=blocks.dtype, device=device(blocks))
    for g in range(groups):
        whole[g * width : (g + 1) * width, g * width : (g + 1) * width] = blocks[g]
    return whole
