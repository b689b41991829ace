"""Multiply-accumulates of one op: linears, convolutions, products and the two of an attention."""

from __future__ import annotations

import math
from collections.abc import Callable

from . import AttentionSpec, Kind, Op, Role, Value

Shape = tuple[int, ...]


def is_convolution(op: Op) -> bool:
    return Role.CONVOLUTION in op.role and len(op.inputs) > 1


def macs_of(op: Op, shape: Callable[[Value], Shape | None]) -> int:
    """Of all samples together; nothing where the shapes are only known at run time."""
    out, *given = (None if v is None else shape(v) for v in (*op.outputs[:1], *op.inputs[:3]))
    if out is None or not given or any(s is None for s in given[:2]):
        return 0
    first, second = given[0] or (), (*given, ())[1] or ()
    if op.kind is Kind.LINEAR:
        return math.prod(out) * math.prod(second) // max(second[op.weight_axes[1]], 1)
    if op.kind is Kind.PRODUCT:
        sizes = dict(zip(op.spec[0], first, strict=True))
        for letter, size in zip(op.spec[1], second, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
        return math.prod(sizes.values())
    if op.attention is not None:
        return attention_macs(op.attention, first, second, (*given, (), ())[2] or ())
    if is_convolution(op):
        return math.prod(out) * math.prod(second[1:])
    return math.prod(first) * math.prod(second[1:]) if Role.CONVOLUTION_BACK in op.role else 0


def attention_macs(spec: AttentionSpec, q: Shape, k: Shape, v: Shape) -> int:
    """The two products: B * heads * N * M * (d_qk + d_v)."""
    heads = (spec.heads, spec.kv_heads, spec.kv_heads)
    (b, n, dk), (_, m, _), (_, _, dv) = map(tokens_and_width, (q, k, v), spec.layouts[:3], heads)
    return b * spec.heads * n * m * (dk + dv)


def tokens_and_width(shape: Shape, layout: str, heads: int) -> tuple[int, int, int]:
    """(batch, tokens, width of a head)."""
    if layout == "bn(hd)":
        return shape[0], shape[1], shape[2] // heads
    return shape[0], shape[layout.index("n")], shape[3]
