"""Weights, cut: which rows stay, in which order, and which of them are mixtures of what was there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toastc.graphs import Op, Value
from toastc.graphs.protocols import Editor, Reader, bias_of
from toastc.plans.plan import CONSUMERS, Basis, Choice, Select
from toastc.plans.sites import Member
from toastc.system.errors import CannotShrink


@dataclass(frozen=True, eq=False)
class Mixture:
    """New rows at `to` are `matrix @` old rows at `rows`."""

    to: np.ndarray
    rows: np.ndarray
    matrix: np.ndarray

    def made(self, flat: np.ndarray) -> np.ndarray:
        return np.asarray(self.matrix @ flat[self.rows].astype(np.float64).reshape(len(self.rows), -1))


@dataclass(frozen=True, eq=False)
class Given:
    """New rows at `to` are these."""

    to: np.ndarray
    rows: np.ndarray

    def made(self, flat: np.ndarray) -> np.ndarray:
        return self.rows


@dataclass(frozen=True, eq=False)
class Cut:
    """One operand along `axes`: `order`, shaped as the axes will be, holds the old flat position of each new one."""

    axes: tuple[int, ...]
    order: np.ndarray
    mixtures: tuple[Mixture | Given, ...] = ()

    def apply(self, array: np.ndarray) -> np.ndarray:
        if len(self.axes) == 1 and not self.mixtures:
            return np.take(array, self.order, self.axes[0])
        front = np.moveaxis(array, self.axes, range(len(self.axes)))
        rest = front.shape[len(self.axes) :]
        flat = front.reshape(-1, *rest)
        new = flat[self.order.ravel()]
        for mixture in self.mixtures:
            new[mixture.to] = mixture.made(flat).reshape(len(mixture.to), *rest).astype(new.dtype)
        new = new.reshape(*self.order.shape, *rest)
        return np.moveaxis(new, range(len(self.axes)), self.axes)


def with_bias(graph: Editor, op: Op, cuts: dict[tuple[Op, int], list[Cut]]) -> tuple[Op, int]:
    """The bias of a consumer; an empty one is put behind it if it has none, cut like what the consumer makes."""
    found = bias_of(graph, op)
    if found is None:
        found = graph.insert_bias(op)
        rows = [c for c in cuts.get((op, 1), ()) if c.axes == (op.weight_axes[1],)]
        cuts.setdefault(found, [replace(c, axes=(0,)) for c in rows])
    return found


def told(cut: Cut) -> Hashable:
    """The same for two cuts that do the same."""
    mixed = ((m.to.tobytes(), m.rows.tobytes(), m.matrix.tobytes() if isinstance(m, Mixture) else b"") for m in cut.mixtures)
    return cut.axes, cut.order.shape, cut.order.tobytes(), tuple(mixed)


def mixtures(member: Member, choice: Choice, groups: Sequence[int], order: np.ndarray) -> tuple[Mixture | Given, ...]:
    """The rows of one member that a basis or a fold computes, or that are given. `groups`: those that stay."""
    if isinstance(choice, Select) or not choice.mixes(member.role):
        return ()
    place = {int(position): new for new, position in enumerate(order.ravel())}
    to = np.array([[place[int(p)] for p in member.index[g][choice.index[g]]] for g in groups])
    if member.role not in CONSUMERS:
        matrices = choice.left  # type: ignore[union-attr]
    elif choice.consumer is not None:
        if len(choice.consumer.weight) != to.size:
            raise CannotShrink(f"{member.weight}: the plan fits {len(choice.consumer.weight)} channels, {to.size} stay")
        return (Given(to.ravel(), choice.consumer.weight),)
    else:
        back = choice.right if isinstance(choice, Basis) else choice.fold
        assert back is not None
        matrices = back.swapaxes(-1, -2)
    if matrices.ndim == 2:
        if len(matrices) != to.size:
            raise CannotShrink(f"{member.weight}: the plan folds into {len(matrices)} channels, {to.size} stay")
        return (Mixture(to.ravel(), member.index.ravel(), matrices),)
    return tuple(Mixture(own, member.index[g], matrices[g]) for own, g in zip(to, groups, strict=True))


def install(graph: Editor, op: Op, slot: int, cuts: Sequence[Cut], plus: Sequence[Callable[[], np.ndarray]] = ()) -> None:
    """Give the operand its cut weight, after adding `plus`; the numbers are computed when the graph is written."""
    value = op.inputs[slot]
    shape = list(graph.shape(value))
    for cut in cuts:
        for axis, size in zip(cut.axes, cut.order.shape, strict=True):
            shape[axis] = size
    graph.set_constant(op, slot, tuple(shape), evaluation(graph, value, cuts, plus))


def evaluation(
    graph: Reader, value: Value, cuts: Sequence[Cut], plus: Sequence[Callable[[], np.ndarray]]
) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        array = graph.constant(value)
        for more in plus:
            array = (array + more().reshape(-1)).astype(array.dtype)
        for cut in cuts:
            array = cut.apply(array)
        return array

    return make


def growth(graph: Reader, member: Member, choice: Choice) -> Callable[[], np.ndarray]:
    """By what a consumer's bias grows: what it gets on average from channels that are gone, W . shift, or what was fitted."""
    assert not isinstance(choice, Select)
    op, slot = member.operand
    consumer, shift = choice.consumer, choice.shift

    def make() -> np.ndarray:
        if consumer is not None:
            return consumer.bias
        assert shift is not None
        weight = np.moveaxis(graph.constant(op.inputs[slot]), op.weight_axes, (0, 1)).astype(np.float64)
        rows = weight.reshape(*weight.shape[:2], -1).sum(axis=2)  # of a window, all of it
        return np.asarray(shift.ravel() @ rows[member.index.ravel()])

    return make
