"""An attention spelt out in many nodes: where it begins, what is multiplied and added on the way, how its axes stand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from toastc.graphs import Kind, Op, Role, Value, one_of_one
from toastc.graphs.protocols import Reader


class Unfusable(Exception):
    """An attention that one node can not stand for."""


@dataclass(frozen=True)
class Added:
    """What is added to the scores, and times what. `windows`: while images and windows are two axes, so many windows. `apart`:
    images and heads are two axes, which they are not in the product.
    """

    value: Value
    factor: float
    windows: int = 0
    apart: bool = False


@dataclass(frozen=True, eq=False)
class Spelt:
    """An attention in many nodes. `factor` is multiplied onto the product."""

    scores: Op
    mix: Op
    slot: int  # of the weights, in the mix
    factor: float
    added: tuple[Added, ...]
    cast: bool  # the scores have another type than queries and keys
    by_head: np.ndarray | None  # multiplied onto the product of each head


def through(graph: Reader, value: Value | None) -> tuple[Op | None, bool]:
    """The op that makes a value, casts and the like aside, and whether what is not a number was replaced on the way."""
    op, guarded = (None if value is None else graph.producer(value)), False
    while op is not None:
        test = graph.producer(op.inputs[0]) if Role.WHERE in op.role else None
        if test is not None and Role.IS_NAN in test.role:
            op, guarded = graph.producer(op.inputs[2]), True
        elif Role.SAME in op.role:
            op = graph.producer(op.inputs[0])
        else:
            break
    return op, guarded


def scalar(graph: Reader, value: Value | None) -> float | None:
    if value is None or not graph.is_constant(value) or math.prod(graph.shape(value)) != 1:
        return None
    return float(graph.constant(value).reshape(()))


def scaled(graph: Reader, op: Op) -> tuple[int, float] | None:
    """If an op multiplies one operand with a number that is known: which one, and the number."""
    if op.factor is not None and op.kind is Kind.ELEMENTWISE:
        return 0, op.factor
    for slot in (0, 1) if op.role & (Role.MULTIPLY | Role.DIVIDE) and len(op.inputs) > 1 else ():
        number = scalar(graph, op.inputs[1 - slot])
        if number is not None and (slot == 0 or Role.MULTIPLY in op.role):
            return slot, number if Role.MULTIPLY in op.role else 1 / number
    return None


def recognise_attention(graph: Reader, mix: Op, slot: int, softmax: Op) -> Spelt:
    rank = len(graph.shape(softmax.inputs[0]))
    if tuple(a % rank for a in softmax.axes) != (rank - 1,):
        raise Unfusable("its softmax is not over the last axis")
    factor, added, cast, windows, apart = 1.0, list[Added](), False, 0, False
    by_head: np.ndarray | None = None
    value = softmax.inputs[0]
    while True:
        op = None if value is None else graph.producer(value)
        if op is None or (op.kind is not Kind.PRODUCT and op.outputs[0] in graph.outputs):
            raise Unfusable("its scores are not a product of queries and keys")
        if op.kind is Kind.PRODUCT:
            if len(op.inputs) > 2:
                raise Unfusable("its scores are a sum and a product in one")
            return Spelt(op, mix, slot, factor, tuple(added), cast, by_head)
        by = scaled(graph, op)
        if by is not None:
            factor, value = factor * by[1], op.inputs[by[0]]
        elif (numbers := head_by_head(graph, op)) is not None and by_head is None:
            value, by_head = op.inputs[numbers[0]], numbers[1]
        elif Role.SAME in op.role:
            value, cast = op.inputs[0], cast or Role.CAST in op.role
        elif Role.ADD in op.role and len(op.inputs) > 1 and by_head is None:
            own = next((i for i in (0, 1) if reaches_product(graph, op.inputs[i])), None)
            if own is None:
                raise Unfusable("its scores are not a product of queries and keys")
            added.append(Added(op.inputs[1 - own], factor, windows, apart))
            value = op.inputs[own]
        elif (parted := windows_of(graph, op, rank)) is not None:
            value, windows = op.inputs[0], parted
        elif rank == 3 and only_reshapes(graph, op, 2):
            value, apart = op.inputs[0], len(graph.shape(op.inputs[0])) == 4
        else:
            raise Unfusable(f"{op} stands between its scores and the softmax")


def head_by_head(graph: Reader, op: Op) -> tuple[int, np.ndarray] | None:
    """If an op multiplies the scores of each head with a number: which operand they are, and the numbers."""
    for slot in (0, 1) if Role.MULTIPLY in op.role and len(op.inputs) > 1 and len(graph.shape(op.outputs[0])) == 4 else ():
        other, heads = op.inputs[1 - slot], graph.shape(op.outputs[0])[1]
        if other is not None and graph.is_constant(other) and graph.shape(other)[-3:] == (heads, 1, 1):
            return slot, graph.constant(other).reshape(heads).astype(np.float64)
    return None


def sees_something(graph: Reader, mask: Value) -> bool:
    """No token is forbidden all others."""
    return graph.is_constant(mask) and bool(np.isfinite(graph.constant(mask)).any(axis=-1).all())


def windows_of(graph: Reader, op: Op, rank: int) -> int | None:
    """If an op only puts images and windows on one axis, or apart: how many windows stand on an axis of their own above it."""
    if rank != 4 or not only_reshapes(graph, op, 3):
        return None
    above = graph.shape(op.inputs[0])
    return above[1] if len(above) == 5 else 0


def only_reshapes(graph: Reader, op: Op, last: int) -> bool:
    """Does it only put two axes on one, or apart, and leave the `last` ones behind these as they are?"""
    if not one_of_one(op):
        return False
    above, below = graph.shape(op.inputs[0]), graph.shape(op.outputs[0])
    if sorted((len(above), len(below))) != [last + 1, last + 2] or above[-last:] != below[-last:]:
        return False
    ids = np.arange(math.prod(above)).reshape(above)
    return np.array_equal(graph.push(op, [ids])[0].ravel(), ids.ravel())


def reaches_product(graph: Reader, value: Value | None) -> bool:
    """By numbers and sums alone."""
    op = None if value is None else graph.producer(value)
    while op is not None and op.kind is not Kind.PRODUCT:
        by = scaled(graph, op) or head_by_head(graph, op)
        if by is None and Role.SAME not in op.role and op.kind is not Kind.SHAPE:
            return Role.ADD in op.role and any(reaches_product(graph, v) for v in op.inputs[:2])
        op = graph.producer(op.inputs[by[0] if by else 0])
    return op is not None


def sides(scores: Op) -> tuple[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...]]]:
    """Which operands are queries and keys, and the orders of their axes that make them [.., tokens, width]."""
    left, right, out = scores.spec
    groups = out[:-2]
    for queries, (one, other) in enumerate(((left, right), (right, left))):
        if out[-2] in one and out[-2] not in other and out[-1] in other and out[-1] not in one:
            if len(out) in (3, 4) and len(one) == len(other) == len(out) and all(g in one and g in other for g in groups):
                return (queries, 1 - queries), (axes_of(one, groups, out[-2]), axes_of(other, groups, out[-1]))
    raise Unfusable("its scores have other axes than images, heads and tokens")


def mix_axes(mix: Op, slot: int, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The orders of the axes of the values and of what comes out."""
    weights, values, made = mix.spec[slot], mix.spec[1 - slot], mix.spec[2]
    groups = weights[:-2]
    if not len(weights) == len(values) == len(made) == rank or not all(g in values and g in made for g in groups):
        raise Unfusable("its values have other axes than images, heads and tokens")
    if weights[-1] not in values or weights[-1] in made or weights[-2] not in made or weights[-2] in values:
        raise Unfusable("its values are summed over another axis than that of its keys")
    return axes_of(values, groups, weights[-1]), axes_of(made, groups, weights[-2])


def axes_of(term: str, groups: str, tokens: str) -> tuple[int, ...]:
    known = [term.index(x) for x in groups + tokens]
    return (*known, next(i for i in range(len(term)) if i not in known))
