"""Tokens that are merged by a choice made at run time, drawn once for all graphs.

A choice is `of` [images, tokens]: the position of the token that each becomes part of. Positions keep their order, and there are
as many of them for every image, so that all shapes stay what they are. From it follow the merged stream, `M x / M 1` with
M[i, j] = 1 where token j becomes part of i, the sizes `M s`, and the way back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toastc.graphs import Kind, Op, Pen, Value
from toastc.plans.merges import Layout, Merge
from toastc.plans.sites import Site
from toastc.system.errors import CannotShrink

TINY = 1e-6


@dataclass(frozen=True, eq=False)
class Drawn:
    """A stream with fewer tokens, [B, N, C]; how many patches each stands for, [B, N, 1]; where every patch is, [B, patches]."""

    stream: Value
    sizes: Value
    of_patch: Value


def merged(pen: Pen, x: Value, of: Value | np.ndarray, before: Layout, count: int, known: Drawn | None, rule: str) -> Drawn:
    """By a choice, or, behind one, by pairs that are the same for all images: `of` is an array then."""
    column = pen.number(of[None, None]) if isinstance(of, np.ndarray) else pen.widen(of, 1)
    joins = pen.where_equal(column, np.arange(count)[None, :, None])
    own = pen.number(np.asarray(before.sizes, np.float64)[None, :, None]) if known is None else known.sizes
    sizes = pen.product(joins, own)
    if rule == "weighted":
        stream = pen.math("div", pen.product(joins, pen.math("mul", x, own)), sizes)
    else:
        stream = pen.math("div", pen.product(joins, x), pen.widen(pen.total(joins, 2), 2))
    if known is None:
        assert before.of_patch is not None and not isinstance(of, np.ndarray)
        return Drawn(stream, sizes, pen.take(of, before.of_patch, 1))
    way = pen.look_up(of, known.of_patch) if isinstance(of, np.ndarray) else pen.along(of, known.of_patch)
    return Drawn(stream, sizes, way)


def unit(pen: Pen, x: Value, axis: int) -> Value:
    """Of length one along an axis."""
    length = pen.root(pen.math("add", pen.total(pen.math("mul", x, x), axis), np.array(TINY)))
    return pen.math("div", x, pen.widen(length, axis))


def alike_lines(pen: Pen, x: Value, layout: Layout, merge: Merge) -> Value:
    """Of neighbouring columns (or rows) those go together that are most alike, added up over all of their tokens."""
    across, count = merge.merge == "horizontal", merge.pairs
    assert count is not None
    lines = layout.width if across else layout.height
    patches = pen.take(x, np.arange(layout.leading, layout.count), 1)
    grid = pen.fold(patches, [0, layout.height, layout.width, -1])
    axis, pairs = (2 if across else 1), lines // 2
    left, right = (unit(pen, pen.take(grid, np.arange(pairs) * 2 + side, axis), 3) for side in (0, 1))
    alike = pen.total(pen.total(pen.math("mul", left, right), 3), 3 - axis)
    goes = pen.flags(pen.best(alike, count)[1], pairs)  # [B, pairs]
    line = np.arange(lines)
    second = ((line % 2 == 1) & (line < 2 * pairs)).astype(np.int64)
    gone = pen.math("mul", pen.take(goes, np.minimum(line // 2, pairs - 1), 1), second[None])
    place = pen.math("sub", numbered(pen, line, gone), np.array([[1]]))
    rows, columns = np.divmod(np.arange(layout.height * layout.width), layout.width)
    aside = np.arange(layout.leading)
    which = np.concatenate([0 * aside, columns if across else rows])
    step = np.concatenate([0 * aside, np.full(len(rows), 1 if across else layout.width)])
    base = layout.leading + (rows * (layout.width - count) if across else columns)
    found = pen.math("mul", pen.take(place, which, 1), step[None])
    return pen.math("add", found, np.concatenate([aside, base])[None])


def numbered(pen: Pen, line: np.ndarray, gone: Value) -> Value:
    """1, 2, 3, .. along those that stay; one that goes has the number of the one before it."""
    return pen.running(pen.math("add", pen.math("mul", gone, np.array([[-1]])), np.ones((1, len(line)), np.int64)))


def matched_pairs(pen: Pen, keys: Value, layout: Layout, count: int) -> Value:
    """ToMe's bipartite matching: every other token goes to the most similar of the rest, the most similar ones first."""
    patches = np.arange(layout.leading, layout.count)
    first, second = patches[patches % 2 == 0], patches[patches % 2 == 1]
    metric = unit(pen, keys, 2)
    a, b = pen.take(metric, first, 1), pen.take(metric, second, 1)
    scores = pen.turn(pen.product(a, pen.turn(b, [0, 2, 1])), [0, 2, 1])  # [B, second, first]
    nearest, partner = pen.best(scores, 1)
    closest = pen.fold(nearest, [0, len(first)])
    goes = pen.flags(pen.best(closest, min(count, len(first)))[1], len(first))
    among = np.zeros(layout.count, np.int64)
    among[first] = np.arange(len(first))
    is_first = np.isin(np.arange(layout.count), first).astype(np.int64)
    gone = pen.math("mul", pen.take(goes, among, 1), is_first[None])
    place = pen.math("sub", numbered(pen, among, gone), np.array([[1]]))
    target = pen.along(place, pen.look_up(second, pen.fold(partner, [0, len(first)])))
    moved = pen.math("sub", pen.take(target, among, 1), place)
    return pen.math("add", place, pen.math("mul", gone, moved))


def keys_of(pen: Pen, site: Site) -> Value:
    """[B, N, d]: the keys of an attention, the mean over its heads."""
    op: Op = site.wiring.scores
    spec = op.attention
    if spec is not None:
        value, layout = op.inputs[1], spec.layouts[1]
        if layout == "bn(hd)":
            value = pen.fold(value, [0, 0, spec.kv_heads, -1])
        return pen.total(value, 1 if layout == "bhnd" else 2)
    left, right, out = op.spec
    slot = 1 if out[-1] in right else 0
    letters = (left, right)[slot]
    if op.kind is not Kind.PRODUCT or len(letters) != 4 or letters[0] != out[0]:
        raise CannotShrink(f"tokens: {op} does not keep images and heads apart; its keys can not be compared")
    head = next(i for i, x in enumerate(letters) if i and x in left and x in right and x in out)
    rest = [x for i, x in enumerate(letters) if i != head]
    summed = pen.total(op.inputs[slot], head)
    return summed if rest.index(out[-1]) == 1 else pen.turn(summed, [0, 2, 1])
