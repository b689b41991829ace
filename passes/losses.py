"""What every width of a coupling costs in accuracy, in closed form, and the choice that costs no more.

    Q.K'   the logits q.k: singular values of Mq^1/2 Mk^1/2 per head, k less its mean (a softmax does not see it)
    V.O    the output W u: singular values of W C^1/2 per head; then W is refitted to all that stays, across heads
    FFN    the output W h: backward elimination, each channel folded into those that stay when it goes

M are second moments, C covariances. The mean of what goes is a constant, and moves into the consumer's bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from toastc.calibration.moments import Sums
from toastc.graphs import Graph
from toastc.plan import Basis, Choice, Keep
from toastc.sites import Coupling, Member

LEAST = 1e-6  # of the mean variance, added to every variance before a system is solved
STEPS = 96  # of backward elimination


@dataclass(frozen=True, eq=False)
class Loss:
    """`curves[g, k]`: the expected squared error of one token when k channels of group g stay.

    `choose(k, groups)`: what to do then, where only these groups stay. `order`: the groups, those first that can best
    be done without, once the others made up for them.
    """

    curves: np.ndarray
    choose: Callable[[int, Sequence[int]], Choice]
    order: np.ndarray

    @property
    def curve(self) -> np.ndarray:
        return np.asarray(self.curves.sum(axis=0))


def loss_of(graph: Graph, coupling: Coupling, moments: dict[str, Sums]) -> Loss | None:
    """None where nothing is known of its channels."""
    if coupling.name == "qk":
        if "q" not in moments or "k" not in moments:
            return None
        if coupling.rotatable:
            return turned_products(moments["q"], moments["k"])
        return ranked(energy(moments["q"], coupling.width) * energy(moments["k"], coupling.width))
    consumers = [m for m in coupling.members if m.role == "out"]
    if not consumers or "out" not in moments:
        return None
    if len(consumers) > 1:  # a value that several heads read
        read = sum(np.square(columns(graph, m)).sum(axis=1) for m in consumers) / len(consumers)
        return ranked(energy(moments["out"], coupling.width) * read.reshape(coupling.groups, coupling.width))
    weight = columns(graph, consumers[0])
    if coupling.rotatable and coupling.name == "vo":
        return turned_values(moments["out"], weight)
    return kept_channels(moments["out"], weight, coupling)


def columns(graph: Graph, consumer: Member) -> np.ndarray:
    """[channels, out] in float64: the consumer's weight, a row for each channel."""
    op, slot = consumer.operand
    weight = np.moveaxis(graph.constant(op.inputs[slot]), op.weight_axes, (0, 1)).astype(np.float64)
    return np.asarray(weight[consumer.index.ravel()])


# ---- Q and K ---------------------------------------------------------------------------------------------


def turned_products(q: Sums, k: Sums) -> Loss:
    parts = []
    for mq, mk in zip(q.second, k.second, strict=True):
        root_q, back_q = roots(mq)
        root_k, back_k = roots(mk)
        u, s, v = np.linalg.svd(root_q @ root_k)
        parts.append((s, np.sqrt(s)[:, None] * (u.T @ back_q), np.sqrt(s)[:, None] * (v @ back_k)))

    def choose(width: int, groups: Sequence[int]) -> Choice:
        return Basis(np.stack([a[:width] for _, a, _ in parts]), np.stack([b[:width].T for _, _, b in parts]))

    energy = np.stack([s**2 for s, _, _ in parts])
    return Loss(tails(energy), choose, np.argsort(energy.sum(axis=1), kind="stable"))


def energy(sums: Sums, width: int) -> np.ndarray:
    """[groups, width]: E[x^2] of each channel, over all its copies."""
    return np.asarray((sums.squares / sums.count).reshape(len(sums.total), width, -1).sum(axis=2))


def ranked(energy: np.ndarray) -> Loss:
    """Where channels may not be mixed: those of most energy stay."""
    order = np.argsort(-energy, axis=1, kind="stable")

    def choose(width: int, groups: Sequence[int]) -> Choice:
        return Keep(np.sort(order[:, :width], axis=1))

    return Loss(tails(np.take_along_axis(energy, order, 1)), choose, np.argsort(energy.sum(axis=1), kind="stable"))


# ---- V and O ---------------------------------------------------------------------------------------------


def turned_values(out: Sums, weight: np.ndarray) -> Loss:
    mean, cov = out.mean, shrunken(out)
    count, width = mean.shape
    lefts, energy = [], np.zeros((count, width))
    for g in range(count):
        own = slice(g * width, (g + 1) * width)
        root, back = roots(cov[own, own])
        _, s, v = np.linalg.svd(weight[own].T @ root, full_matrices=True)
        energy[g, : len(s)] = s[:width] ** 2
        lefts.append(v @ back)

    def choose(kept: int, groups: Sequence[int]) -> Choice:
        left = np.stack([own[:kept] for own in lefts])
        narrow = np.zeros((len(groups) * kept, count * width))
        for row, g in enumerate(groups):
            narrow[row * kept : (row + 1) * kept, g * width : (g + 1) * width] = left[g]
        right = fitted(cov @ narrow.T, narrow @ cov @ narrow.T)
        shift = mean.ravel() - right @ (narrow @ mean.ravel())
        return Basis(left, right, shift.reshape(mean.shape))

    return Loss(tails(energy), choose, eliminate_groups(cov, weight, count))


# ---- channels that stay as they are ----------------------------------------------------------------------


def kept_channels(out: Sums, weight: np.ndarray, coupling: Coupling) -> Loss:
    mean, cov = out.mean, shrunken(out)
    if coupling.groups == 1:
        order, curve = eliminate(cov, weight)
        curves, gone = curve[None], np.zeros(1, int)
    else:
        energy = (np.diag(cov) * (weight**2).sum(axis=1)).reshape(mean.shape)
        order, curves = np.argsort(energy, axis=1, kind="stable"), tails(-np.sort(-energy, axis=1))
        gone = eliminate_groups(cov, weight, coupling.groups)

    def choose(kept: int, groups: Sequence[int]) -> Choice:
        return folded(np.sort(np.atleast_2d(order)[:, -kept:], axis=1), groups, mean, cov)

    return Loss(curves, choose, gone)


def folded(index: np.ndarray, groups: Sequence[int], mean: np.ndarray, cov: np.ndarray) -> Keep:
    """These channels stay, of these groups, and take over what the others did as far as they vary alike."""
    flat = (index + mean.shape[1] * np.arange(len(mean))[:, None])[list(groups)].ravel()
    fold = fitted(cov[:, flat], cov[np.ix_(flat, flat)])
    fold[flat] = np.eye(len(flat))
    shift = mean.ravel() - fold @ mean.ravel()[flat]
    return Keep(index, fold, shift.reshape(mean.shape))


def eliminate(cov: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Channels in the order in which they go, and what is lost when k stay.

    Each step takes those whose loss, after the others made up for them, is smallest, several at once so that wide
    FFNs are done in seconds. The inverse covariance and the weight are updated, not computed anew.
    """
    count = len(cov)
    inverse = np.linalg.inv(cov + (LEAST * np.trace(cov) / count + 1e-30) * np.eye(count))
    weight, left = weight.copy(), np.arange(count)
    known, lost, order = {count: 0.0}, 0.0, []
    step = max(1, count // STEPS)
    while len(left) > 1:
        cost = (weight**2).sum(axis=1) / np.diag(inverse)
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


# ---- linear algebra --------------------------------------------------------------------------------------


def tails(energy: np.ndarray) -> np.ndarray:
    """[groups, width + 1]: what is lost when the first k of each group stay."""
    return np.hstack([np.cumsum(energy[:, ::-1], axis=1)[:, ::-1], np.zeros((len(energy), 1))])


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


def roots(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The symmetric root, and its inverse on what is not zero."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    values = np.maximum(values, 0)
    inverse = np.where(values > values.max(initial=0) * 1e-10, 1 / np.sqrt(np.maximum(values, 1e-300)), 0)
    return (vectors * np.sqrt(values)) @ vectors.T, (vectors * inverse) @ vectors.T


def fitted(cross: np.ndarray, own: np.ndarray) -> np.ndarray:
    """cross . own^-1, with every variance a little larger."""
    floor = LEAST * np.trace(own) / len(own) + 1e-30
    return np.asarray(np.linalg.solve(own + floor * np.eye(len(own)), cross.T).T)


def shrunken(sums: Sums) -> np.ndarray:
    """The covariance, drawn towards its diagonal as far as the sample is too small for it (as Ledoit and Wolf do).

    What never varied stays at zero: a dead channel costs nothing to lose.
    """
    cov = sums.covariance[0] if len(sums.outer) == 1 else block_diagonal(sums.covariance)
    size = len(cov)
    mean = np.trace(cov) / size
    apart = float(((cov - mean * np.eye(size)) ** 2).sum())
    noise = max(sums.energy2 / sums.count - float((sums.second**2).sum()), 0.0) / sums.count
    share = min(1.0, noise / apart) if apart > 0 else 0.0
    return (1 - share) * cov + share * np.diag(np.diag(cov))


def block_diagonal(blocks: np.ndarray) -> np.ndarray:
    groups, width, _ = blocks.shape
    whole = np.zeros((groups * width, groups * width))
    for g, block in enumerate(blocks):
        whole[g * width : (g + 1) * width, g * width : (g + 1) * width] = block
    return whole
