"""Merges written into a graph: the merged streams, what attention adds for the sizes of tokens, and the way back to every patch.

Which tokens are merged is known, or is chosen at run time (`merge_alike`): behind such a choice sizes and places are computed by
the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from toastc.graphs import Op, Value
from toastc.graphs.labels import NONE
from toastc.graphs.protocols import Builder, Graph
from toastc.plans.merges import Layout, Merge, Pairs
from toastc.plans.sites import Site
from toastc.system.errors import CannotShrink

from ..shrink.shapes import what_remains
from .alike import Drawn, alike_lines, keys_of, matched_pairs, merged
from .flow import TokenFlow, Track
from .masks import surviving, touched


@dataclass(frozen=True)
class Merged:
    """What is worth knowing, what the choices made at run time are called, and each merge with what stood before and after."""

    notes: list[str]
    choices: list[str]
    steps: list[tuple[Merge, Layout, Layout]]


@dataclass(frozen=True, eq=False)
class Step:
    """A merge at a value of the graph, and what is left behind it. `pairs` that are known, or chosen by an attention's keys."""

    value: Value
    merge: Merge
    before: Layout
    layout: Layout
    pairs: Pairs | None
    attention: Site | None


class Merging:
    """Tokens are numbered anew behind each merge: `step * count + position`, positions as they were in the dense graph."""

    def __init__(self, graph: Graph, steps: Sequence[Step], held: bool) -> None:
        self.graph, self.steps, self.held = graph, steps, held
        self.choices: list[str] = []
        self.count = graph.shape(steps[0].value)[1]
        every = np.arange(self.count)
        starts = {s.value: every + i * self.count for i, s in enumerate(steps)}
        self.flow = TokenFlow(graph, starts, self.count, steps[0].layout.leading).run()
        stays = np.zeros(self.flow.end, bool)
        for i, step in enumerate(steps):
            stays[i * self.count + step.layout.first] = True
        self.stays = self.flow.marked(stays)

    def written(self) -> tuple[Graph, Merged]:
        graph, flow = self.graph, self.flow
        drawn = self.drawn()
        for tracks in flow.tracks.values():
            for track in tracks:
                self.check(track.ravel(), drawn)
        for op in touched(flow):
            graph.resize(op, *what_remains(graph, op, partial(surviving, flow, self.stays)))
        for op, ids, asking in flow.keys:
            if any(s.merge.proportional for s in self.steps):
                self.weigh(op, ids, int(self.stays[asking].sum()), drawn)
        for op, value in flow.whole.items():
            axis, ids = along(flow.tracks[value][0])
            way = self.way_back(ids, drawn)
            if isinstance(way, np.ndarray):
                whole = graph.builder(op, value).take(value, way, axis)
            else:
                whole = graph.builder(op, value).gather_tokens(value, way)
            graph.redirect(op, op.inputs.index(value), whole)
        for value in graph.outputs:
            if value in flow.tracks:
                if len(flow.tracks[value]) > 1:
                    raise CannotShrink("tokens: an output of the model has merged tokens on two axes")
                axis, ids = along(flow.tracks[value][0])
                graph.pick_output(value, axis, self.way_back(ids, drawn))
        for step, stream in self.streams.items():
            graph.rewire(step.value, stream, self.builders[step].drawn)
        graph.finish()
        steps = [(s.merge, s.before, s.layout) for s in self.steps]
        return graph.reopened(), Merged(list(dict.fromkeys(flow.notes)), self.choices, steps)

    def check(self, ids: np.ndarray, drawn: Mapping[Step, Drawn]) -> None:
        """A part of a sequence must not take a merged token apart; what is merged at run time stays together."""
        step = self.step_of(ids)
        aside, there = step.layout.leading, np.unique(ids[self.flow.tokens(ids)] % self.count)
        if step in drawn:
            whole = (there >= aside).sum() in (0, self.count - aside)
        else:
            whole = bool(np.isin(step.layout.first[patches(step)[there]], there).all())
        if not whole:
            raise CannotShrink("tokens: a part of the patches is taken by itself, and they may be merged with others")

    def standing(self, ids: np.ndarray) -> np.ndarray:
        """Which token of its step stands where in what stays of a sequence; NONE for those that joined it later."""
        kept = ids[self.stays[ids]]
        return np.where(self.flow.tokens(kept), np.searchsorted(self.step_of(ids).layout.first, kept % self.count), NONE)

    def weigh(self, op: Op, ids: np.ndarray, queries: int, drawn: Mapping[Step, Drawn]) -> None:
        """A token that stands for several patches counts as often as a key."""
        step, at = self.step_of(ids), self.standing(ids)
        if step not in drawn:
            assert step.layout.sizes is not None
            plus = np.tile(np.log(np.where(at >= 0, step.layout.sizes[at], 1)), (queries, 1))
            self.graph.add_to_scores(
                op, self.graph.builder(op, op.inputs[0]).constant(plus[None, None] if op.attention else plus)
            )
            return
        if not op.attention and len(self.graph.shape(op.inputs[0])) != 4:
            raise CannotShrink(f"tokens: {op} does not keep images and heads apart; sizes found at run time can not be added")
        builder, sizes = self.graph.builder(op, step.value), drawn[step].sizes
        if not np.array_equal(at, np.arange(step.layout.count)):
            own = (at >= 0).astype(np.float64)[None, :, None]
            sizes = builder.add(builder.mul(builder.take(sizes, np.maximum(at, 0), 1), own), 1 - own)
        column = builder.transpose(builder.log(sizes), [0, 2, 1])
        self.graph.add_to_scores(op, builder.mul(builder.unsqueeze(column, 1), np.ones((1, 1, queries, 1))))

    def way_back(self, ids: np.ndarray, drawn: Mapping[Step, Drawn]) -> np.ndarray | Value:
        """For every place of the whole sequence, the one in what stays of it: an array, or [images, places] at run time."""
        step, at = self.step_of(ids), self.standing(ids)
        place = np.zeros(step.layout.count, np.int64)
        place[at[at >= 0]] = np.flatnonzero(at >= 0)
        token, joined = ids % self.count, np.cumsum(self.stays[ids]) - 1
        if step not in drawn:
            return np.where(self.flow.tokens(ids), place[patches(step)[token]], joined)
        builder, way = self.builders[step], drawn[step].of_patch
        if np.array_equal(ids, ids[0] + np.arange(self.count)):
            return way
        own = self.flow.tokens(ids).astype(np.int64)[None]
        found = builder.gather_rows(place, builder.take(way, token, 1))
        return builder.add(builder.mul(found, own), joined[None] * (1 - own))

    def drawn(self) -> dict[Step, Drawn]:
        """The merged streams. What is only known at run time is given back: from the first choice on, that is all there is."""
        graph, found, known = self.graph, dict[Step, Drawn](), None
        self.streams: dict[Step, Value] = {}
        self.builders: dict[Step, Builder] = {}
        for number, step in enumerate(self.steps):
            first = min((op for op, _ in graph.users(step.value)), key=lambda op: graph.ops.index(op))
            builder = self.builders[step] = graph.builder(first, step.value)
            if step.pairs is not None and known is None:
                self.streams[step] = averaged(builder, step.value, step.pairs)
                continue
            if step.pairs is not None:
                of: Any = step.pairs.place
            else:
                self.choices.append(f"toastc_merged/{number}")
                of = self.choose(builder, step, self.choices[-1])
            known = found[step] = merged(builder, step.value, of, step.before, step.layout.count, known, step.merge.rule)
            self.streams[step] = known.stream
        return found

    def choose(self, builder: Builder, step: Step, name: str) -> Value:
        if self.held:
            return self.graph.add_input(name, step.before.count, step.value)
        if step.attention is None:
            of = alike_lines(builder, step.value, step.before, step.merge)
        else:
            keys = keys_of(builder, step.attention)
            of = matched_pairs(builder, keys, step.before, step.before.count - step.layout.count)
        builder.name(of, name)
        return of

    def step_of(self, ids: Track) -> Step:
        return self.steps[int(ids[self.flow.tokens(ids)].max()) // self.count]


def along(track: Track) -> tuple[int, np.ndarray]:
    """The axis of a track, and its numbers."""
    return next(i for i, n in enumerate(track.shape) if n > 1), track.ravel()


def patches(step: Step) -> np.ndarray:
    assert step.layout.of_patch is not None  # known wherever nothing was chosen before
    return step.layout.of_patch


def averaged(builder: Builder, x: Value, pairs: Pairs) -> Value:
    """The stream with pairs of its tokens made one, the same ones for every image."""
    left = builder.mul(builder.take(x, pairs.left, 1), pairs.share[:, None])
    right = builder.mul(builder.take(x, pairs.right, 1), 1 - pairs.share[:, None])
    return builder.add(left, right)
