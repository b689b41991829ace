"""What every width of a coupling costs in accuracy, in closed form, and the choice that costs no more.

    Q.K'   the logits q.k: singular values of Mq^1/2 Mk^1/2 per head, k less its mean (a softmax does not see it)
    V.O    the output W u: singular values of W C^1/2 per head; then W is refitted to all that stays, across heads
    FFN    the output W h: backward elimination, each channel folded into those that stay when it goes

M are second moments, C covariances. The mean of what goes is a constant, and moves into the consumer's bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from toastc.calibration.moments import Sums, to_float64
from toastc.calibration.taps import Tap
from toastc.graphs import Op
from toastc.graphs.protocols import Reader, is_pointwise
from toastc.plans.plan import Basis, Choice, Consumer, Keep, Select
from toastc.plans.sites import Coupling, Member
from toastc.system.arrays import as_array

from .algebra import fitted, like, roots, tails
from .covariances import Covariance, covariance_of, shrunken
from .elimination import eliminate, eliminate_groups


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


def loss_of(graph: Reader, coupling: Coupling, moments: dict[str, Sums], rounded: bool = False) -> Loss | None:
    """None where nothing is known of its channels. `rounded`: what the consumer takes will be 8-bit numbers of one scale."""
    if coupling.name == "qk":
        if "q" not in moments or "k" not in moments:
            return None
        if coupling.rotatable:
            return turned_products(moments["q"], moments["k"])
        return ranked(of_products(graph, coupling, moments, lambda sums: energy(sums, coupling.width)))
    consumers = [m for m in coupling.members if m.role == "out"]
    if not consumers or "out" not in moments:
        return None
    if len(consumers) > 1:  # a value that several heads read
        read = sum(np.square(columns(graph, m)).sum(axis=1) for m in consumers) / len(consumers)
        return ranked(energy(moments["out"], coupling.width) * read.reshape(coupling.groups, coupling.width))
    out, weight = moments["out"], columns(graph, consumers[0])
    if len(out.total) > coupling.groups:
        return lone_channels(out, weight)
    if coupling.rotatable and coupling.name == "vo":
        return turned_values(out, weight)
    return kept_channels(out, weight, coupling, rounded)


def columns(graph: Reader, consumer: Member) -> np.ndarray:
    """[channels, out] in float64: the consumer's weight, a row for each channel; of a window, [channels, out * window]."""
    op, slot = consumer.operand
    weight = np.moveaxis(graph.constant(op.inputs[slot]), op.weight_axes, (0, 1)).astype(np.float64)
    return np.asarray(weight.reshape(len(weight), -1)[consumer.index.ravel()])


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


def of_products(
    graph: Reader, coupling: Coupling, moments: Mapping[str, Sums], measure: Callable[[Sums], np.ndarray],
    of_constant: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> np.ndarray:  # fmt: skip
    """[groups, width]: what each channel brings to the logits, over all products that it goes into."""
    total = np.asarray(measure(moments["q"]) * measure(moments["k"]))
    for n, op in enumerate(coupling.beside):
        sides = []
        for slot, key in enumerate((f"q{n}", f"k{n}")):
            if key in moments:
                sides.append(measure(moments[key]))
            elif (squares := table(graph, coupling, op, slot)) is not None:
                sides.append(of_constant(squares))
        if len(sides) == 2:
            total = total + sides[0] * sides[1]
    return total


def table(graph: Reader, coupling: Coupling, op: Op, slot: int) -> np.ndarray | None:
    """[groups, width]: the mean square of each channel of a constant that queries meet, less its mean over the keys."""
    members = [m for m in coupling.members if m.operand == (op, slot)]
    if not members or not graph.is_constant(op.inputs[slot]):
        return None
    array, own, out = graph.constant(op.inputs[slot]).astype(np.float64), op.spec[slot], op.spec[2]
    if out[-1] in own and out[-1] not in op.spec[1 - slot]:
        array = array - array.mean(axis=own.index(out[-1]), keepdims=True)
    others = tuple(i for i in range(array.ndim) if i not in members[0].axes)
    squares = np.square(array).mean(axis=others).ravel()
    return np.asarray(sum(squares[m.index] for m in members))


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
    lefts, energy = [], np.empty((count, width))
    for g in range(count):
        own = slice(g * width, (g + 1) * width)
        root, back = roots(to_float64(cov[own, own]))
        read = weight[own].T @ root
        values, vectors = np.linalg.eigh(read.T @ read)
        energy[g], v = np.maximum(values[::-1], 0), vectors[:, ::-1].T
        lefts.append(v @ back)

    def choose(kept: int, groups: Sequence[int]) -> Choice:
        left = np.stack([own[:kept] for own in lefts])
        narrow = np.zeros((len(groups) * kept, count * width))
        for row, g in enumerate(groups):
            narrow[row * kept : (row + 1) * kept, g * width : (g + 1) * width] = left[g]
        whole = to_float64(shrunken(out))  # covariances are large: none is kept beside the sums
        right = fitted(whole @ narrow.T, narrow @ whole @ narrow.T)
        shift = mean.ravel() - right @ (narrow @ mean.ravel())
        return Basis(left, right, shift.reshape(mean.shape))

    return Loss(tails(energy), choose, eliminate_groups(cov, like(weight, cov), count))


# ---- channels that stay as they are ----------------------------------------------------------------------


def kept_channels(out: Sums, weight: np.ndarray, coupling: Coupling, rounded: bool) -> Loss:
    mean = out.mean
    if coupling.groups == 1:
        cov, rms = covariance_of(out), np.sqrt(out.squares / out.count).ravel() if rounded else None
        order, curve = eliminate(cov, like(weight, cov.variances), rms)
        curves, gone = curve[None], np.zeros(1, int)
    else:
        whole = shrunken(out)
        variance = to_float64(array_namespace(whole).linalg.diagonal(whole))
        energy = (variance * (weight**2).sum(axis=1)).reshape(mean.shape)
        order, curves = np.argsort(energy, axis=1, kind="stable"), tails(-np.sort(-energy, axis=1))
        gone = eliminate_groups(whole, like(weight, whole), coupling.groups)

    def choose(kept: int, groups: Sequence[int]) -> Choice:
        return folded(np.sort(np.atleast_2d(order)[:, -kept:], axis=1), groups, mean, covariance_of(out))

    return Loss(curves, choose, gone)


def lone_channels(out: Sums, weight: np.ndarray) -> Loss:
    """Where nothing is known of how they vary together: those go that vary least, and leave their mean."""
    mean = out.mean.ravel()
    energy = np.maximum(out.squares.ravel() / out.count - mean**2, 0) * (weight**2).sum(axis=1)
    order = np.argsort(-energy, kind="stable")

    def choose(kept: int, groups: Sequence[int]) -> Choice:
        index = np.sort(order[:kept])
        fold, shift = np.zeros((len(mean), kept)), mean.copy()
        fold[index, np.arange(kept)], shift[index] = 1, 0
        return Keep(index[None], fold, shift[None])

    return Loss(tails(energy[order][None]), choose, np.zeros(1, int))


def folded(index: np.ndarray, groups: Sequence[int], mean: np.ndarray, cov: Covariance) -> Keep:
    """These channels stay, of these groups, and take over what the others did as far as they vary alike."""
    flat = (index + mean.shape[1] * np.arange(len(mean))[:, None])[list(groups)].ravel()
    gone = np.setdiff1d(np.arange(mean.size), flat)
    made = as_array(cov.fit(gone, flat))
    fold = np.zeros((mean.size, len(flat)), made.dtype)
    fold[flat, np.arange(len(flat))], fold[gone] = 1, made
    shift = mean.ravel() - fold @ mean.ravel()[flat]
    return Keep(index, fold, shift.reshape(mean.shape))


def consumed(graph: Reader, coupling: Coupling, tap: Tap | None, choice: Choice) -> Choice:
    """The same as what becomes of the consumer, where it takes what the tap shows: smaller than how channels are remade."""
    consumers = [m for m in coupling.members if m.role == "out"]
    if isinstance(choice, Select) or len(consumers) != 1 or tap is None or tap.copies != 1:
        return choice
    if not is_pointwise(graph, consumers[0].operand[0]):
        return choice
    back = choice.right if isinstance(choice, Basis) else choice.fold
    if back is None or back.ndim == 3 or tap.value is not consumers[0].operand[0].inputs[0]:
        return choice
    weight = columns(graph, consumers[0]).astype(back.dtype)
    shift = np.zeros(weight.shape[1]) if choice.shift is None else choice.shift.ravel() @ weight
    made = Consumer((back.T @ weight).astype(np.float32), shift.astype(np.float32), coupling.width)
    return Basis(choice.left, None, None, made) if isinstance(choice, Basis) else Keep(choice.index, consumer=made)
