"""merge-tokens: neighbouring tokens of the grid become one, before the blocks that the merges name (CAIT's ATME).

The stream behind `before` is half as wide: every pair is averaged, attention counts a merged token by the log of its size, and
where the sequence is put back into a grid (a dense head), or is an output, every patch gets the token it has become part of.
Weights stay what they were; the rest of a compile sees a graph with fewer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toastc.errors import CannotShrink, ToastcError
from toastc.graphs import Graph, Value
from toastc.sites import Site
from toastc.tokens import Layout, Merge, Pairs
from toastc.views import compact

from .match import match
from .match.token_flow import TokenFlow, Track, touched
from .match.tokens import grid_of, leading_tokens
from .shrink.selections import residual_of


def merge_tokens(graph: Graph, merges: Sequence[Merge]) -> tuple[Graph, list[str]]:
    """The graph with its tokens merged, looked at afresh; and what is worth knowing."""
    sites = match(graph)[1]
    starts = sorted(((stream_before(graph, sites, m), m) for m in merges), key=lambda pair: graph.position(pair[0]))
    layout = first_layout(graph, starts[0][0])
    steps: list[Step] = []
    for value, merge in starts:
        if any(value is step.value for step in steps):
            raise ToastcError(f"tokens: two merges stand before the same block ({merge.before}); put the second one block later")
        layout, pairs = layout.merged(merge)
        steps.append(Step(value, merge, pairs, layout))
    return Merging(graph, steps).written()


@dataclass(frozen=True, eq=False)
class Step:
    """A merge at a value of the graph, and what is left behind it."""

    value: Value
    merge: Merge
    pairs: Pairs
    layout: Layout


def stream_before(graph: Graph, sites: Sequence[Site], merge: Merge) -> Value:
    """The residual stream that the attention of a block reads."""
    attention = [s for s in sites if s.kind == "attention"]
    if merge.before.isdigit():
        found = attention[int(merge.before)] if int(merge.before) < len(attention) else None
    else:
        found = next((s for s in attention if f"{s.name}.".startswith(f"{merge.before}.")), None)
    if found is None:
        known = ", ".join(s.name for s in attention[:3])
        raise ToastcError(f"tokens: no attention stands in {merge.before}; there are {len(attention)}: {known}, ...")
    op, slot = residual_of(graph, found)
    value = op.inputs[slot]
    if value is None or len(graph.shape(value)) != 3 or graph.producer(value) is None:
        raise ToastcError(f"tokens: before {merge.before} there is no stream of tokens that could be merged")
    return value


def first_layout(graph: Graph, value: Value) -> Layout:
    count, leading = graph.shape(value)[1], leading_tokens(graph)
    if graph.varies(value)[1]:
        raise ToastcError("tokens: how many there are is only known at run time; export the model for one size of images")
    height, width = grid_of(graph, count - leading)
    return Layout.whole(leading, height, width)


class Merging:
    """Tokens are numbered anew behind each merge: `step * count + position`, positions as they were in the dense graph."""

    def __init__(self, graph: Graph, steps: Sequence[Step]) -> None:
        self.graph, self.steps = graph, steps
        self.count = graph.shape(steps[0].value)[1]
        every = np.arange(self.count)
        starts = {s.value: every + i * self.count for i, s in enumerate(steps)}
        self.flow = TokenFlow(graph, starts, self.count, steps[0].layout.leading).run()
        self.stays = np.zeros(len(steps) * self.count + 1, bool)
        self.stays[-1] = True
        for i, step in enumerate(steps):
            self.stays[i * self.count + step.layout.first] = True

    def written(self) -> tuple[Graph, list[str]]:
        graph, flow = self.graph, self.flow
        for op in touched(flow):
            before = [self.ids(v) for v in op.inputs if v is not None]
            after = [self.ids(v) for v in op.outputs if v is not None]
            graph.resize(op, before, after)
        for op, ids, asking in flow.keys:
            if any(s.merge.proportional for s in self.steps):
                queries = self.steps[asking].layout.count if asking >= 0 else 1
                graph.weigh_keys(op, np.tile(np.log(self.step_of(ids).layout.sizes), (queries, 1)))
        for op, value in flow.whole.items():
            graph.redirect(op, op.inputs.index(value), graph.pick(value, 1, self.step_at(value).layout.of_patch, op))
        for value in graph.outputs:
            if value in flow.tracks:
                track = flow.tracks[value]
                if len(track) > 1:
                    raise CannotShrink("tokens: an output of the model has merged tokens on two axes")
                axis = next(i for i, n in enumerate(track[0].shape) if n > 1)
                graph.pick_output(value, axis, self.step_at(value).layout.of_patch)
        for step in self.steps:
            graph.merge(step.value, step.pairs)
        graph.finish()
        return graph.reopened(), list(dict.fromkeys(flow.notes))

    def ids(self, value: Value) -> np.ndarray:
        """The numbers of the tokens that stay, in the shape the value will have."""
        shape = self.graph.shape(value)
        tracks = self.flow.tracks.get(value) or self.flow.alone.get(value, [])
        ids, mask = np.full(shape, -1), np.ones(shape, bool)
        for number, track in enumerate(tracks):
            ids = np.where(track >= 0, track + np.maximum(ids, 0) * (number * len(self.stays) + 1), ids)
            mask = mask & self.stays[track]
        small = compact(mask)
        if small is None:
            raise CannotShrink(f"tokens: what stays of {self.graph.producer(value)} is no grid")
        return ids.ravel()[small[1].ravel()].reshape(small[0])

    def step_at(self, value: Value) -> Step:
        return self.step_of(self.flow.tracks[value][0])

    def step_of(self, ids: Track) -> Step:
        return self.steps[int(ids.max()) // self.count]
