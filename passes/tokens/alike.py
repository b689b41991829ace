"""Tokens that are merged by a choice made at run time, drawn once for all graphs.

A choice is `of` [images, tokens]: the position of the token that each becomes part of. Positions keep their order, and there are
as many of them for every image, so that all shapes stay what they are. From it follow the merged stream, `M x / M 1` with
M[i, j] = 1 where token j becomes part of i, the sizes `M s`, and the way back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toastc.graphs import Dim, Kind, Op, Value
from toastc.graphs.protocols import Builder
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


def merged(
    builder: Builder, x: Value, of: Value | np.ndarray, before: Layout, count: int, known: Drawn | None, rule: str
) -> Drawn:
    """By a choice, or, behind one, by pairs that are the same for all images: `of` is an array then."""
    column = builder.constant(of[None, None]) if isinstance(of, np.ndarray) else builder.unsqueeze(of, 1)
    joins = builder.equal(column, np.arange(count)[None, :, None])
    own = builder.constant(np.asarray(before.sizes, np.float64)[None, :, None]) if known is None else known.sizes
    sizes = builder.matmul(joins, own)
    if rule == "weighted":
        stream = builder.div(builder.matmul(joins, builder.mul(x, own)), sizes)
    else:
        stream = builder.div(builder.matmul(joins, x), builder.unsqueeze(builder.sum(joins, 2), 2))
    if known is None:
        assert before.of_patch is not None and not isinstance(of, np.ndarray)
        return Drawn(stream, sizes, builder.take(of, before.of_patch, 1))
    way = builder.gather_rows(of, known.of_patch) if isinstance(of, np.ndarray) else builder.gather_along(of, known.of_patch)
    return Drawn(stream, sizes, way)


def unit(builder: Builder, x: Value, axis: int) -> Value:
    """Of length one along an axis."""
    length = builder.sqrt(builder.add(builder.sum(builder.mul(x, x), axis), np.array(TINY)))
    return builder.div(x, builder.unsqueeze(length, axis))


def alike_lines(builder: Builder, x: Value, layout: Layout, merge: Merge) -> Value:
    """Of neighbouring columns (or rows) those go together that are most alike, added up over all of their tokens."""
    across, count = merge.merge == "horizontal", merge.pairs
    assert count is not None
    lines = layout.width if across else layout.height
    patches = builder.take(x, np.arange(layout.leading, layout.count), 1)
    grid = builder.reshape(patches, [Dim(0), layout.height, layout.width, -1])
    axis, pairs = (2 if across else 1), lines // 2
    left, right = (unit(builder, builder.take(grid, np.arange(pairs) * 2 + side, axis), 3) for side in (0, 1))
    alike = builder.sum(builder.sum(builder.mul(left, right), 3), 3 - axis)
    goes = builder.one_hot(builder.topk(alike, count, 1)[1], pairs)  # [B, pairs]
    line = np.arange(lines)
    second = ((line % 2 == 1) & (line < 2 * pairs)).astype(np.int64)
    gone = builder.mul(builder.take(goes, np.minimum(line // 2, pairs - 1), 1), second[None])
    place = builder.sub(numbered(builder, line, gone), np.array([[1]]))
    rows, columns = np.divmod(np.arange(layout.height * layout.width), layout.width)
    aside = np.arange(layout.leading)
    which = np.concatenate([0 * aside, columns if across else rows])
    step = np.concatenate([0 * aside, np.full(len(rows), 1 if across else layout.width)])
    base = layout.leading + (rows * (layout.width - count) if across else columns)
    found = builder.mul(builder.take(place, which, 1), step[None])
    return builder.add(found, np.concatenate([aside, base])[None])


def numbered(builder: Builder, line: np.ndarray, gone: Value) -> Value:
    """1, 2, 3, .. along those that stay; one that goes has the number of the one before it."""
    return builder.cumsum(builder.add(builder.mul(gone, np.array([[-1]])), np.ones((1, len(line)), np.int64)))


def matched_pairs(builder: Builder, keys: Value, layout: Layout, count: int) -> Value:
    """ToMe's bipartite matching: every other token goes to the most similar of the rest, the most similar ones first."""
    patches = np.arange(layout.leading, layout.count)
    first, second = patches[patches % 2 == 0], patches[patches % 2 == 1]
    metric = unit(builder, keys, 2)
    a, b = builder.take(metric, first, 1), builder.take(metric, second, 1)
    scores = builder.transpose(builder.matmul(a, builder.transpose(b, [0, 2, 1])), [0, 2, 1])  # [B, second, first]
    nearest, partner = builder.topk(scores, 1, 1)
    closest = builder.reshape(nearest, [Dim(0), len(first)])
    goes = builder.one_hot(builder.topk(closest, min(count, len(first)), 1)[1], len(first))
    among = np.zeros(layout.count, np.int64)
    among[first] = np.arange(len(first))
    is_first = np.isin(np.arange(layout.count), first).astype(np.int64)
    gone = builder.mul(builder.take(goes, among, 1), is_first[None])
    place = builder.sub(numbered(builder, among, gone), np.array([[1]]))
    target = builder.gather_along(place, builder.gather_rows(second, builder.reshape(partner, [Dim(0), len(first)])))
    moved = builder.sub(builder.take(target, among, 1), place)
    return builder.add(place, builder.mul(gone, moved))


def keys_of(builder: Builder, site: Site) -> Value:
    """[B, N, d]: the keys of an attention, the mean over its heads."""
    op: Op = site.wiring.scores
    spec = op.attention
    if spec is not None:
        value, layout = op.inputs[1], spec.layouts[1]
        if layout == "bn(hd)":
            value = builder.reshape(value, [Dim(0), Dim(1), spec.kv_heads, -1])
        return builder.sum(value, 1 if layout == "bhnd" else 2)
    left, right, out = op.spec
    slot = 1 if out[-1] in right else 0
    letters = (left, right)[slot]
    if op.kind is not Kind.PRODUCT or len(letters) != 4 or letters[0] != out[0]:
        raise CannotShrink(f"tokens: {op} does not keep images and heads apart; its keys can not be compared")
    head = next(i for i, x in enumerate(letters) if i and x in left and x in right and x in out)
    rest = [x for i, x in enumerate(letters) if i != head]
    summed = builder.sum(op.inputs[slot], head)
    return summed if rest.index(out[-1]) == 1 else builder.transpose(summed, [0, 2, 1])
