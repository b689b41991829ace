"""Covariances of channels, drawn towards their diagonal as far as the sample is too small for them (as Ledoit and Wolf do).

From a matrix, or, where fewer vectors than channels were seen, from those: rows' rows + a diagonal. What is asked of it is the
same; of the second kind no matrix of all channels is ever made, and what is solved are systems as wide as there are vectors.
They live where their numbers do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from array_api_compat import array_namespace, device

from toastc.calibration.moments import Sums
from toastc.system.vocabulary import Array

from .algebra import LEAST, fitted, floored, inverse_of, like, solved_lower, solved_upper


class Inverse(Protocol):
    """Of a covariance, or what is left of it when channels are gone."""

    def diagonal(self) -> Array: ...
    def columns(self, at: Array) -> Array: ...  # [channels, these]
    def without(self, stay: Array, panels: Array) -> Inverse: ...  # of those that stay, less panels panels'


class Covariance(Protocol):
    @property
    def variances(self) -> Array: ...
    def fit(self, gone: np.ndarray, stay: np.ndarray) -> Array: ...  # [gone, stay]: how the second best make up for the first
    def inverse(self, scale: Array, more: float) -> Inverse: ...  # of channels measured so, with variances larger by a share


def covariance_of(sums: Sums) -> Covariance:
    if sums.rows is None:
        return Matrix(shrunken(sums))
    xp = array_namespace(sums.rows)
    rows = sums.rows / sums.count**0.5
    between, variances = rows @ rows.T, xp.sum(rows**2, axis=0)
    along = rows @ like(sums.mean.ravel(), rows)
    share = too_few(sums, float(xp.sum(xp.vecdot(between, between))), float(xp.sum(variances)), float(xp.sum(along**2)))
    return Rows((1 - share) ** 0.5 * rows, share * variances + like(silence(sums, rows), rows))


def shrunken(sums: Sums) -> Array:
    """The matrix. What never varied stays at zero: a dead channel costs nothing to lose."""
    xp, mean = array_namespace(sums.outer), sums.mean
    cov = sums.covariance
    cov = cov[0] if cov.shape[0] == 1 else block_diagonal(cov)
    variances = xp.asarray(xp.linalg.diagonal(cov), copy=True)
    along = float(like(mean.ravel(), cov) @ cov @ like(mean.ravel(), cov))
    cov *= 1 - too_few(sums, float(xp.sum(xp.vecdot(cov, cov))), float(xp.sum(variances)), along)
    xp.reshape(cov, (-1,))[:: cov.shape[0] + 1] = variances + like(silence(sums, cov), cov)
    return cov


def too_few(sums: Sums, squares: float, trace: float, along: float) -> float:
    """How far it is drawn: from the squares of all its numbers, its trace, and what it is along the mean."""
    apart = squares - trace**2 / sums.mean.size
    raw = squares + 2 * along + float((sums.mean**2).sum()) ** 2
    noise = max(sums.energy2 / sums.count - raw, 0.0) / sums.count
    return min(1.0, noise / apart) if apart > 0 else 0.0


def silence(sums: Sums, numbers: Array) -> np.ndarray:
    """What varies less than its numbers can tell does not."""
    eps = float(array_namespace(numbers).finfo(numbers.dtype).eps)
    return np.asarray((4 * eps) ** 2 * sums.squares.ravel() / sums.count)


def block_diagonal(blocks: Array) -> Array:
    xp = array_namespace(blocks)
    groups, width, _ = blocks.shape
    whole = xp.zeros((groups * width, groups * width), dtype=blocks.dtype, device=device(blocks))
    for g in range(groups):
        whole[g * width : (g + 1) * width, g * width : (g + 1) * width] = blocks[g]
    return whole


# ---- a matrix -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Matrix:
    matrix: Array

    @property
    def variances(self) -> Array:
        return array_namespace(self.matrix).linalg.diagonal(self.matrix)

    def fit(self, gone: np.ndarray, stay: np.ndarray) -> Array:
        rows = array_namespace(self.matrix).take(self.matrix, like(stay, self.matrix), axis=0)
        return fitted(rows[:, like(gone, rows)].T, rows[:, like(stay, rows)])

    def inverse(self, scale: Array, more: float) -> Inverse:
        return MatrixInverse(inverse_of(floored(self.matrix / scale[:, None] / scale[None, :], more)))


@dataclass(frozen=True, eq=False)
class MatrixInverse:
    matrix: Array

    def diagonal(self) -> Array:
        return array_namespace(self.matrix).linalg.diagonal(self.matrix)

    def columns(self, at: Array) -> Array:
        return array_namespace(self.matrix).take(self.matrix, at, axis=0).T

    def without(self, stay: Array, panels: Array) -> Inverse:
        xp = array_namespace(self.matrix)
        return MatrixInverse(xp.take(xp.take(self.matrix, stay, axis=0), stay, axis=1) - panels @ panels.T)


# ---- few rows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """rows' rows + own, which is a diagonal."""

    rows: Array  # [few, channels]
    own: Array

    @property
    def variances(self) -> Array:
        return array_namespace(self.rows).sum(self.rows**2, axis=0) + self.own

    def fit(self, gone: np.ndarray, stay: np.ndarray) -> Array:
        xp, at = array_namespace(self.rows), like(stay, self.rows)
        kept, others, own = xp.take(self.rows, at, axis=1), xp.take(self.rows, like(gone, at), axis=1), xp.take(self.own, at)
        if len(stay) <= kept.shape[0]:
            matrix, each = kept.T @ kept, xp.arange(len(stay), device=device(kept))
            matrix[each, each] += own
            return fitted(others.T @ kept, matrix)
        own = raised(kept, own, LEAST)
        lower, across = whitened(kept, own)
        return others.T @ (xp.astype(solved_upper(lower, across), kept.dtype) / xp.sqrt(own))

    def inverse(self, scale: Array, more: float) -> Inverse:
        xp, rows = array_namespace(self.rows), self.rows / scale
        own = raised(rows, self.own / scale**2, more)
        low = xp.empty(tuple(rows.T.shape), dtype=rows.dtype, device=device(rows))  # channel by channel in memory
        low[...] = (xp.astype(whitened(rows, own)[1], rows.dtype) / xp.sqrt(own)).T
        return RowsInverse(1 / own, low)


@dataclass(frozen=True, eq=False)
class RowsInverse:
    """own - low low'. Channels that went have added to `low`, which has fewer rows then."""

    own: Array
    low: Array  # [channels, few]

    def diagonal(self) -> Array:
        return self.own - array_namespace(self.low).sum(self.low**2, axis=1)

    def columns(self, at: Array) -> Array:
        xp = array_namespace(self.low)
        made = -(self.low @ xp.take(self.low, at, axis=0).T)
        made[at, xp.arange(at.shape[0], device=device(made))] += xp.take(self.own, at)
        return made

    def without(self, stay: Array, panels: Array) -> Inverse:
        xp = array_namespace(self.low)
        return RowsInverse(xp.take(self.own, stay), xp.concat([xp.take(self.low, stay, axis=0), panels], axis=1))


def raised(rows: Array, own: Array, by: float) -> Array:
    """The diagonal of which every variance is a little larger, as `floored` makes those of a matrix."""
    xp = array_namespace(rows)
    return own + by * float(xp.sum(rows**2) + xp.sum(own)) / own.shape[0] + 1e-30


def whitened(rows: Array, own: Array) -> tuple[Array, Array]:
    """L of L L' = 1 + rows own^-1 rows', and L^-1 rows own^-1/2; in double precision, where rounding tells."""
    xp = array_namespace(rows)
    across = xp.astype(rows, xp.float64) / xp.sqrt(xp.astype(own, xp.float64))
    inner = across @ across.T
    each = xp.arange(inner.shape[0], device=device(inner))
    inner[each, each] += 1.0
    lower = xp.linalg.cholesky(inner)
    return lower, solved_lower(lower, across)
