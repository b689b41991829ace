"""Weights, cut: which rows stay, in which order, and which of them are mixtures of what was there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from toastc.graphs import Graph, Op
from toastc.plan import Basis, Choice
from toastc.sites import Member


@dataclass(frozen=True, eq=False)
class Mixture:
    """New rows at `to` are `matrix @` old rows at `rows`."""

    to: np.ndarray
    rows: np.ndarray
    matrix: np.ndarray


@dataclass(frozen=True, eq=False)
class Cut:
    """One operand along `axes`: `order`, shaped as the axes will be, holds the old flat position of each new one."""

    axes: tuple[int, ...]
    order: np.ndarray
    mixtures: tuple[Mixture, ...] = ()

    def apply(self, array: np.ndarray) -> np.ndarray:
        if len(self.axes) == 1 and not self.mixtures:
            return np.take(array, self.order, self.axes[0])
        front = np.moveaxis(array, self.axes, range(len(self.axes)))
        rest = front.shape[len(self.axes) :]
        flat = front.reshape(-1, *rest)
        new = flat[self.order.ravel()]
        for mixture in self.mixtures:
            old = flat[mixture.rows].astype(np.float64).reshape(len(mixture.rows), -1)
            new[mixture.to] = (mixture.matrix @ old).reshape(len(mixture.to), *rest).astype(new.dtype)
        new = new.reshape(*self.order.shape, *rest)
        return np.moveaxis(new, range(len(self.axes)), self.axes)


def mixtures(member: Member, choice: Choice, groups: Sequence[int], order: np.ndarray, consumer: bool) -> tuple[Mixture, ...]:
    """The rows of one member that a basis or a fold computes. `groups`: those that stay."""
    if isinstance(choice, Basis):
        matrices = choice.right.transpose(0, 2, 1) if consumer else choice.left
    elif choice.fold is not None and consumer:
        matrices = choice.fold.transpose(0, 2, 1)
    else:
        return ()
    place = {int(position): new for new, position in enumerate(order.ravel())}
    made = []
    for group in groups:
        own = member.index[group]
        to = np.array([place[int(p)] for p in own[choice.index[group]]])
        made.append(Mixture(to, own, matrices[group]))
    return tuple(made)


def install(graph: Graph, op: Op, slot: int, cuts: Sequence[Cut]) -> None:
    """Give the operand its cut weight; the numbers are computed when the graph is written."""
    value = op.inputs[slot]
    shape = list(graph.shape(value))
    for cut in cuts:
        for axis, size in zip(cut.axes, cut.order.shape, strict=True):
            shape[axis] = size
    graph.set_constant(op, slot, tuple(shape), evaluation(graph, value, cuts))


def evaluation(graph: Graph, value: object, cuts: Sequence[Cut]) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        array = graph.constant(value)  # type: ignore[arg-type]
        for cut in cuts:
            array = cut.apply(array)
        return array

    return make
