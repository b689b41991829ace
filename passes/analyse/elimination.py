"""Backward elimination: in which order channels, or whole heads, can best be done without."""

from __future__ import annotations

import numpy as np

LEAST = 1e-6  # of the mean variance, added to every variance before a system is solved
STEPS = 96  # of backward elimination
ROUNDING = 4 / 255  # of an 8-bit grid that is cut off at four times the loudest channel's root mean square


def eliminate(cov: np.ndarray, weight: np.ndarray, rms: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Channels in the order in which they go, and what is lost when k stay.

    Each step takes those whose loss, after the others made up for them, is smallest, several at once so that wide
    FFNs are done in seconds. The inverse covariance and the weight are updated, not computed anew. With the root
    mean square of each channel, those go sooner without which the others can be rounded more finely.
    """
    count = len(cov)
    inverse = np.linalg.inv(cov + (LEAST * np.trace(cov) / count + 1e-30) * np.eye(count))
    weight, left = weight.copy(), np.arange(count)
    known, lost, order = {count: 0.0}, 0.0, []
    step = max(1, count // STEPS)
    while len(left) > 1:
        cost = (weight**2).sum(axis=1) / np.diag(inverse)
        if rms is not None:
            cost -= rounding_without(rms[left], weight)
        going = np.sort(np.argpartition(cost, min(step, len(left) - 1) - 1)[: min(step, len(left) - 1)])
        stay = np.delete(np.arange(len(left)), going)
        solved = np.linalg.solve(inverse[np.ix_(going, going)], np.hstack([weight[going], inverse[np.ix_(going, stay)]]))
        lost += float((weight[going] * solved[:, : weight.shape[1]]).sum())
        across = inverse[np.ix_(stay, going)]
        weight = weight[stay] - across @ solved[:, : weight.shape[1]]
        inverse = inverse[np.ix_(stay, stay)] - across @ solved[:, weight.shape[1] :]
        order.append(left[going[np.argsort(cost[going], kind="stable")]])
        left = left[stay]
        known[len(left)] = lost
    order.append(left)
    known[0] = lost + float((weight**2).sum() / inverse[0, 0])
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


def eliminate_groups(cov: np.ndarray, weight: np.ndarray, count: int) -> np.ndarray:
    """Groups in the order in which they go, each time the one that the others can best make up for."""
    size = len(cov)
    inverse, weight = np.linalg.inv(cov + (LEAST * np.trace(cov) / size + 1e-30) * np.eye(size)), weight.copy()
    spans = [slice(start, start + size // count) for start in range(0, size, size // count)]
    left, order = list(range(count)), []
    while left:
        solved = [np.linalg.solve(inverse[spans[g], spans[g]], weight[spans[g]]) for g in left]
        at = int(np.argmin([(weight[spans[g]] * s).sum() for g, s in zip(left, solved, strict=True)]))
        own = spans[left[at]]
        weight -= inverse[:, own] @ solved[at]
        inverse -= inverse[:, own] @ np.linalg.solve(inverse[own, own], inverse[own])
        order.append(left.pop(at))
    return np.array(order)
