"""Tokens that nobody reads behind the last attention: where a class token alone is asked, the last block is worked out for it
alone. Nothing is lost by it: the outputs stay what they were.

The queries of the last attention, and the stream that its result is added to, are cut down to the tokens that are read at the
end; keys and values stay those of all tokens.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from toastc.graphs import Kind, Op
from toastc.graphs.protocols import Graph, Reader
from toastc.system.errors import CannotShrink

from ..match import match
from ..shrink.selections import residual_of
from ..shrink.shapes import what_remains
from .flow import TOKEN_AXIS, TokenFlow
from .masks import surviving, touched


def drop_unread(graph: Graph) -> tuple[Graph, str]:
    """The graph, looked at afresh, and what there is to say about it."""
    attention = [s for s in match(graph)[1] if s.kind == "attention"]
    if not attention:
        return graph, "no attention was found behind which tokens could stand unread"
    last = max(attention, key=lambda s: graph.ops.index(s.wiring.mix))
    try:
        add, slot = residual_of(graph, last)
        queries, at, axis = queries_of(last.wiring.scores)
        stream = add.inputs[slot]
        count = graph.shape(queries.inputs[at])[axis]
        if len(graph.shape(stream)) != 3 or graph.shape(stream)[1] != count or graph.varies(stream)[1]:
            raise CannotShrink("their number is only known at run time, or they do not stand on the second axis")
        if count == 1:
            return graph, ""
        along = [1] * len(graph.shape(queries.inputs[at]))
        along[axis] = count
        cuts = {(add, slot): np.arange(count)[:, None][None], (queries, at): np.arange(count).reshape(along)}
        flow = TokenFlow(graph, {}, count, count, cuts=cuts).run()
        read = tokens_read(graph, flow, count)
        if len(read) == count:
            return graph, ""
        left = partial(surviving, flow, flow.marked(np.isin(np.arange(count), read)))
        edits = [(op, *what_remains(graph, op, left)) for op in touched(flow)]
    except CannotShrink as error:
        return graph, f"all tokens stay behind the last attention: {error}"
    for op, before, after in edits:
        graph.resize(op, before, after)
    graph.redirect(add, slot, graph.builder(add, stream).take(stream, read, 1))
    asked = queries.inputs[at]
    graph.redirect(queries, at, graph.builder(queries, asked).take(asked, read, axis))
    graph.finish()
    return graph.reopened(), f"behind the last attention {len(read)} of {count} tokens are read; the others are left out"


def queries_of(scores: Op) -> tuple[Op, int, int]:
    """The op that takes the queries, at which slot, and on which axis of them the tokens stand."""
    if scores.attention is not None:
        return scores, 0, TOKEN_AXIS[scores.attention.layouts[0]]
    left, right, out = scores.spec
    slot = 0 if out[-2] in left else 1
    return scores, slot, (left, right)[slot].index(out[-2])


def tokens_read(graph: Reader, flow: TokenFlow, count: int) -> np.ndarray:
    """Positions that leave the sequence on their own; all of them where the whole sequence is asked."""
    every, read = np.arange(count), set[int]()
    if flow.whole or flow.notes or any(v in flow.tracks for v in graph.outputs):
        return every
    for op in graph.ops:
        if op.kind is Kind.SHAPE and any(v in flow.tracks for v in op.inputs):
            for value in op.outputs:
                for track in (*flow.tracks.get(value, ()), *flow.alone.get(value, ())):
                    ids = np.unique(track[flow.tokens(track)])
                    if len(ids) < count:
                        read.update(ids.tolist())
    return np.array(sorted(read), np.int64) if read else every
