"""Writes an attention as one node, on rows of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toastc.graphs import Dim, Op, Value, lone_shape, one_of_one
from toastc.graphs.protocols import Builder, Editor, Reader

from .recognise import Spelt, Unfusable, mix_axes, scaled, sides


@dataclass(frozen=True)
class Rows:
    """A tensor of tokens, [batch, tokens, whole], and where in its last axis the heads' channels stand, one after the other."""

    value: Value
    start: int
    width: int
    whole: int
    factor: float = 1.0
    flat: int = 0  # tokens of an image, if the tensor is [batch * tokens, whole]


class Writer:
    def __init__(self, graph: Editor) -> None:
        self.graph = graph

    def write(self, found: Spelt) -> None:
        graph, scores, mix = self.graph, found.scores, found.mix
        (queries, keys), axes = sides(scores)
        values, made = mix_axes(mix, found.slot, len(axes[0]))
        shape = graph.shape(scores.outputs[0])
        heads = shape[1] if len(shape) == 4 else shape[0] // graph.batch
        if len(shape) == 4 and graph.varies(scores.outputs[0])[1]:
            raise Unfusable("the number of its heads is only known at run time")
        operands = [scores.inputs[queries], scores.inputs[keys], mix.inputs[1 - found.slot]]
        perms = [axes[0], axes[1], values]
        for value, perm in zip(operands, perms, strict=True):
            if turned_shape(graph.shape(value), perm)[:-2] != shape[:-2] or shape[0] * shape[1] % heads:
                raise Unfusable("its heads or images are shared between queries and keys")
        if mix.outputs[0] in graph.outputs:
            raise Unfusable("an output of the model reads it head by head")
        q, k, v = (self.rows(value, perm, heads, mix) for value, perm in zip(operands, perms, strict=True))
        bias = self.bias(found, heads, q)
        scale, after = found.factor * (scores.factor or 1.0), mix.factor or 1.0
        self.hand_on(mix.outputs[0], made, heads, self.attended((q, k, v), bias, heads, scale, mix, after, found.by_head), mix)

    def write_whole(self, op: Op) -> None:
        """An attention that is one node already, but another runtime's."""
        graph, spec = self.graph, op.attention
        assert spec is not None
        if spec.more:
            raise Unfusable(f"it {spec.more}")
        q, k, v = (
            self.rows(value, (0, 1, 2, 3), spec.heads, op) if layout != "bn(hd)" else whole_rows(graph, value)
            for value, layout in zip(op.inputs[:3], spec.layouts, strict=False)
        )
        bias = None
        mask = op.inputs[spec.masks[0]] if len(op.inputs) > spec.masks[0] else None
        if mask is not None:
            tokens = graph.shape(q.value)[1], graph.shape(k.value)[1]
            bias = self.four_axes(graph.builder(op, op.inputs[0]), mask, graph.shape(mask), spec.heads, tokens)
        whole = self.attended((q, k, v), bias, spec.heads, spec.scale, op)
        if spec.layouts[3] == "bn(hd)":
            graph.replace(op.outputs[0], whole)
        else:
            self.hand_on(op.outputs[0], (0, 1, 2, 3), spec.heads, whole, op)

    def attended(
        self, rows: tuple[Rows, Rows, Rows], bias: Value | None, heads: int, scale: float, like: Op, after: float = 1.0,
        by_head: np.ndarray | None = None,
    ) -> Value:  # fmt: skip
        """The node itself, with the factors that stood on the way to it."""
        q, k, v = rows
        queries, keys, values = self.parts(rows, like)
        builder = self.graph.builder(like, like.outputs[0])
        if by_head is not None:
            queries = builder.mul(queries, np.repeat(by_head, q.width // heads)[None, None])
        whole = builder.attend((queries, keys, values), bias, heads, scale * q.factor * k.factor)
        after *= v.factor
        return whole if after == 1 else builder.mul(whole, np.array(after))

    def rows(self, value: Value | None, perm: Sequence[int], heads: int, like: Op) -> Rows:
        """Where an operand stands as rows of tokens: as near to it as there is such a place."""
        graph = self.graph
        assert value is not None
        *groups, tokens, width = turned_shape(graph.shape(value), perm)
        images = math.prod(groups) // heads
        chain: list[tuple[Op, int]] = []
        here, factor = value, 1.0
        while (op := graph.producer(here)) is not None:
            by = scaled(graph, op)
            if by is not None:
                here, factor = op.inputs[by[0]], factor * by[1]
            elif lone_shape(op):
                chain.insert(0, (op, op.outputs.index(here)))
                here = op.inputs[0]
            else:
                break
            shape = graph.shape(here)
            flat = len(shape) == 2 and not graph.varies(value)[perm[-2]]
            if shape[:-1] != ((images * tokens,) if flat else (images, tokens)):
                continue
            moved = ids = np.arange(math.prod(shape)).reshape(shape)
            for step, position in chain:
                moved = graph.push(step, [moved])[position]
            moved = np.transpose(moved, perm).reshape(images, heads, tokens, width)
            start = int(moved[0, 0, 0, 0])
            plain = ids.reshape(images, tokens, -1)[:, :, start : start + heads * width]
            if plain.shape[2] == heads * width and np.array_equal(moved, split_heads(plain, heads)):
                return Rows(here, start, heads * width, shape[-1], factor, tokens if flat else 0)
        made = self.turned(value, perm, heads, tokens, width, like)
        return Rows(made, 0, heads * width, heads * width)

    def turned(self, value: Value, perm: Sequence[int], heads: int, tokens: int, width: int, like: Op) -> Value:
        """An operand turned into rows: [batch, heads, tokens, width] -> [batch, tokens, heads * width]."""
        graph = self.graph
        size: int | Dim = Dim(len(perm) - 2) if graph.varies(value)[perm[-2]] else tokens
        if len(perm) == 3:
            value = graph.builder(like).transpose(value, perm) if list(perm) != [0, 1, 2] else value
            value, perm = graph.builder(like).reshape(value, [-1, heads, size, width]), (0, 1, 2, 3)
        turned = [perm[i] for i in (0, 2, 1, 3)]
        value = graph.builder(like).transpose(value, turned) if turned != [0, 1, 2, 3] else value
        return graph.builder(like).reshape(value, [Dim(0), Dim(1), heads * width])

    def parts(self, rows: Sequence[Rows], like: Op) -> list[Value]:
        """Of tensors that hold several of queries, keys and values side by side, each is split once."""
        found: dict[tuple[Value, int], Value] = {}
        for value in dict.fromkeys(r.value for r in rows):
            own = [r for r in rows if r.value == value]
            ends = sorted({0, own[0].whole, *(r.start for r in own), *(r.start + r.width for r in own)})
            if any(r.start + r.width != ends[ends.index(r.start) + 1] for r in own):
                raise Unfusable("its queries, keys and values overlap")
            sizes = np.diff(ends).tolist()
            made = self.graph.builder(like).split(value, sizes) if len(sizes) > 1 else [value]
            if own[0].flat:
                made = [self.graph.builder(like).reshape(part, [-1, own[0].flat, n]) for part, n in zip(made, sizes, strict=True)]
            found |= {(value, start): part for start, part in zip(ends, made, strict=False)}
        return [found[r.value, r.start] for r in rows]

    def bias(self, found: Spelt, heads: int, queries: Rows) -> Value | None:
        """Everything that is added to the scores, as one tensor."""
        graph, shape = self.graph, self.graph.shape(found.scores.outputs[0])
        builder = graph.builder(found.mix, found.scores.inputs[0])
        total: Value | None = None
        size: tuple[int, ...] = ()
        for added in sorted(found.added, key=lambda a: a.windows):
            part, own = added.value, graph.shape(added.value)
            part = builder.cast(part) if found.cast else part
            part = builder.mul(part, np.array(added.factor)) if added.factor != 1 else part
            if len(shape) == 3 and len(own) == 3 and own[0] > 1 and not added.apart:
                part, own = graph.builder(found.mix).reshape(part, [-1, heads, *own[1:]]), (own[0] // heads, heads, *own[1:])
            if added.windows and len(own) == 5:
                if own[0] != 1 or own[1] != added.windows:
                    raise Unfusable("what is added to its windows is not the same for all images")
                part, own = graph.builder(found.mix).reshape(part, own[1:]), own[1:]
            if added.windows and size[:-3] not in ((), (1,)):
                raise Unfusable("what is added to its windows differs from image to image")
            total = part if total is None else builder.add(total, part)
            size = np.broadcast_shapes(size, own)
        if total is None:
            return None
        if any(added.windows for added in found.added):
            total, size = builder.repeat(total, queries.value), (shape[0], *size[1:])
        assert len(size) <= 4  # as many as the scores and the softmax have; five, with windows apart, were put together above
        return self.four_axes(builder, total, size, heads, shape[-2:])

    def four_axes(self, builder: Builder, bias: Value, size: tuple[int, ...], heads: int, tokens: tuple[int, ...]) -> Value:
        """[images or 1, heads or 1, queries, keys]"""
        for _ in range(4 - len(size)):
            bias, size = builder.unsqueeze(bias, 0), (1, *size)
        if size[1] not in (1, heads):
            raise Unfusable("what is added to its scores does not fit its heads")
        return bias if size[2:] == tuple(tokens) else builder.add(bias, np.zeros((1, 1, *tokens)))

    def hand_on(self, value: Value | None, perm: Sequence[int], heads: int, whole: Value, like: Op) -> None:
        """Those that put the heads side by side again see the rows at once; the others see them turned back."""
        graph = self.graph
        assert value is not None
        shape = graph.shape(value)
        moved = ids = np.arange(math.prod(shape)).reshape(shape)
        tokens, width = turned_shape(shape, perm)[-2:]
        wanted = np.transpose(ids, perm).reshape(-1, heads, tokens, width).swapaxes(1, 2).reshape(-1, tokens, heads * width)
        here = value
        while len(users := graph.users(here)) == 1:
            op = users[0][0]
            if not one_of_one(op):
                break
            moved, here = graph.push(op, [moved])[0], op.outputs[0]
            if here in graph.outputs:
                break
            if moved.ndim in (2, 3) and moved.shape[-1] == heads * width and np.array_equal(moved.ravel(), wanted.ravel()):
                graph.replace(here, whole if moved.ndim == 3 else graph.builder(like).reshape(whole, [-1, heads * width]))
                return
        back = graph.builder(like).reshape(whole, [Dim(0), Dim(1), heads, width])
        if len(perm) == 3:
            size: int | Dim = Dim(2) if graph.varies(value)[perm[-2]] else tokens
            back = graph.builder(like).reshape(graph.builder(like).transpose(back, [0, 2, 1, 3]), [-1, size, width])
            turned = list(perm)
        else:
            turned = [perm[i] for i in (0, 2, 1, 3)]
        order = np.argsort(turned).tolist()
        graph.replace(value, graph.builder(like).transpose(back, order) if order != list(range(len(order))) else back)


def whole_rows(graph: Reader, value: Value | None) -> Rows:
    assert value is not None
    width = graph.shape(value)[-1]
    return Rows(value, 0, width, width)


def turned_shape(shape: Sequence[int], perm: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[i] for i in perm)


def split_heads(rows: np.ndarray, heads: int) -> np.ndarray:
    """[images, tokens, heads * width] -> [images, heads, tokens, width]"""
    return rows.reshape(*rows.shape[:2], heads, -1).swapaxes(1, 2)
