"""Backward elimination: in which order channels, or whole heads, can best be done without.

A channel goes, and the others make up for it by least squares. With P the inverse covariance and w the consumer's rows, what is
lost is |w_i|^2 / P_ii; afterwards both are what they would be without it, by one step of a Cholesky factorisation of P. Steps are
gathered in blocks, so that nearly all of the work is in products of large matrices. They run where the covariance lives.
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace, device

from toastc.calibration.moments import to_float64
from toastc.system.vocabulary import Array

from .algebra import floored, inverse_of
from .covariances import Covariance

COARSE = 1e-4  # of its own variance: single precision tells no finer differences, and channels are only ranked
STEPS = 96  # of backward elimination
BLOCK = 8  # steps, before the inverse covariance is made smaller
ROUNDING = 4 / 255  # of an 8-bit grid that is cut off at four times the loudest channel's root mean square


def eliminate(cov: Covariance, weight: Array, rms: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Channels in the order in which they go, and what is lost when k stay.

    Each step takes those whose loss is smallest, several at once. With the root mean square of each channel, those go sooner
    without which the others can be rounded more finely.
    """
    xp, count, place = array_namespace(weight), weight.shape[0], device(weight)
    loud = xp.sqrt(cov.variances)  # channels are measured by themselves: some are a thousand times louder than others
    scale, weight = xp.where(loud > 0, loud, xp.ones_like(loud)), weight * loud[:, None]
    inverse = cov.inverse(scale, COARSE)
    least, loudness = 1 / (1 + COARSE), to_float64(scale)
    left, known, lost, order = np.arange(count), {count: 0.0}, 0.0, []
    step = max(1, count // STEPS)
    while len(left) > 1:
        alive, panels = np.ones(len(left), bool), weight[:, :0]
        precision = to_float64(inverse.diagonal())
        for _ in range(BLOCK):
            many = min(step, int(alive.sum()) - 1)
            if not many:
                break
            cost = to_float64(xp.vecdot(weight, weight)) / np.maximum(precision, least)
            if rms is not None:
                cost[alive] -= rounding_without(rms[left[alive]], to_float64(weight)[alive] / loudness[left[alive], None])
            cost[~alive] = np.inf
            going = np.argpartition(cost, many - 1)[:many]
            going = going[np.argsort(cost[going], kind="stable")]
            rows = xp.asarray(going, device=place)
            across = inverse.columns(rows) - panels @ xp.take(panels, rows, axis=0).T
            own = xp.take(across, rows, axis=0)
            short = np.maximum(least - to_float64(xp.linalg.diagonal(own)), 0)  # what rounding took
            own += xp.asarray(np.diag(short), dtype=own.dtype, device=device(own))
            values, vectors = xp.linalg.eigh(own)  # none is less, but for rounding: so many correlations add up to no more
            root = (vectors / xp.sqrt(xp.clip(values, min=least / many))).T
            panel, taken = across @ root.T, root @ xp.take(weight, rows, axis=0)
            weight -= panel @ taken
            precision = precision - to_float64(xp.sum(panel**2, axis=1))
            panels = xp.concat([panels, panel], axis=1)
            lost += float(xp.sum(taken**2))
            alive[going] = False
            order.append(left[going])
            known[int(alive.sum())] = lost
        stay = xp.asarray(np.flatnonzero(alive), device=place)
        inverse = inverse.without(stay, xp.take(panels, stay, axis=0))
        weight, left = xp.take(weight, stay, axis=0), left[alive]
    order.append(left)
    known[0] = lost + float(xp.sum(weight**2) / inverse.diagonal()[0])
    widths = np.array(sorted(known))
    return np.concatenate(order), np.interp(np.arange(count + 1), widths, [known[w] for w in widths])


def rounding_without(rms: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """By how much the error of rounding the others falls when each channel goes alone.

    The scale follows from the loudest: only without that one they are rounded more finely.
    """
    noise, power = (ROUNDING * rms) ** 2 / 12, (weight**2).sum(axis=1)
    top, gain = int(np.argmax(noise)), np.zeros(len(noise))
    gain[top] = (noise[top] - np.delete(noise, top).max(initial=0.0)) * (power.sum() - power[top])
    return gain


def eliminate_groups(cov: Array, weight: Array, count: int) -> np.ndarray:
    """Groups in the order in which they go, each time the one that the others can best make up for."""
    xp, size = array_namespace(cov), cov.shape[0]
    inverse, weight = inverse_of(floored(cov)), xp.asarray(weight, copy=True)
    spans = [slice(start, start + size // count) for start in range(0, size, size // count)]
    left, order = list(range(count)), []

    def lost(own: slice) -> float:
        return float(xp.linalg.trace(xp.linalg.solve(inverse[own, own], weight[own] @ weight[own].T)))

    while left:
        own = spans[left.pop(int(np.argmin([lost(spans[g]) for g in left])))]
        order.append(own.start // (size // count))
        across = xp.linalg.solve(inverse[own, own], inverse[own])
        weight -= across.T @ weight[own]
        inverse -= inverse[:, own] @ across
    return np.array(order)
