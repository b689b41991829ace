"""Where the tokens of a sequence stand, from the residual stream on.

Tokens are numbered at a point of the stream and the numbers are carried on, as channels are by `flow`. A tensor may carry
tokens on several axes (scores: queries and keys), so it has one *track* for each. Where a tensor puts a track on two axes, the
grid is being restored. Tokens that join such a sequence later get numbers above all others. What can not be followed is a reason
not to merge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from toastc.graphs import Kind, Op, Value
from toastc.graphs.labels import NONE, collapse, varying
from toastc.graphs.protocols import Reader
from toastc.system.errors import CannotShrink

from ..match.attention import is_softmax

UNMERGED = "takes merged tokens and a sequence whose grid was restored (windows of a grid can not follow a merge)"
TOKEN_AXIS = {"bhnd": 2, "bnhd": 1, "bn(hd)": 1}
Track = np.ndarray


@dataclass(eq=False)
class TokenFlow:
    """`starts[value]`: the numbers that the tokens of this value get, where a merge begins; `cuts`: those of an operand."""

    graph: Reader
    starts: Mapping[Value, np.ndarray]
    count: int  # of one sequence; numbers behind the second merge begin here
    leading: int  # of them, that stand aside
    tracks: dict[Value, list[Track]] = field(default_factory=dict)
    alone: dict[Value, list[Track]] = field(default_factory=dict)  # tokens that are never merged, say the class token
    keys: list[tuple[Op, Track, Track]] = field(default_factory=list)  # softmaxes over tokens: which, and those that ask
    whole: dict[Op, Value] = field(default_factory=dict)  # shape nodes that lead to a grid, and what they must take unmerged
    notes: list[str] = field(default_factory=list)
    cuts: Mapping[tuple[Op, int], Track] = field(default_factory=dict)
    joined: int = 0  # the most tokens that joined a sequence

    @property
    def end(self) -> int:
        """Behind the numbers of tokens."""
        return self.count * max(len(self.starts), 1)

    def tokens(self, ids: np.ndarray) -> np.ndarray:
        """Which of these are numbers of tokens that may be merged."""
        return (ids >= 0) & (ids < self.end)

    def marked(self, stays: np.ndarray) -> np.ndarray:
        """What stays, by number: some of the tokens, and all that joined them, or are none."""
        return np.concatenate([stays, np.ones(self.joined + 1, bool)])

    def run(self) -> TokenFlow:
        """Until no more grids are found: what leads to one takes the whole sequence, and carries no tracks."""
        known = -1
        while known < len(self.whole):
            known = len(self.whole)
            self.tracks, self.alone, self.keys, self.notes = {}, {}, [], []
            self._walk()
        return self

    def _walk(self) -> None:
        rules: dict[Kind, Callable[[Op], None]] = {
            Kind.LINEAR: self._linear, Kind.PRODUCT: self._product, Kind.ATTENTION: self._attention, Kind.SHAPE: self._shape,
            Kind.ELEMENTWISE: self._elementwise, Kind.CHANNELWISE: self._opaque, Kind.REDUCE: self._reduce,
            Kind.OPAQUE: self._opaque,
        }  # fmt: skip
        for op in self.graph.ops:
            if op not in self.whole:
                rules[op.kind](op)
            for value in op.outputs:
                if value in self.starts:
                    self.tracks[value] = [self._along(value)]

    def _along(self, value: Value) -> Track:
        rank = len(self.graph.shape(value))
        return self.starts[value].reshape([1] * (rank - 2) + [-1, 1])

    def of(self, op: Op, slot: int) -> list[Track]:
        value = op.inputs[slot] if slot < len(op.inputs) else None
        if (op, slot) in self.cuts:
            return [self.cuts[op, slot]]
        return [] if value is None else self.tracks.get(value, [])

    def put(self, value: Value | None, tracks: list[Track], op: Op | None = None) -> None:
        found = {varying(t): t for t in tracks}
        alone = found.get(())
        if alone is not None and self.tokens(alone).any() and int(alone.max()) % self.count >= self.leading:
            raise CannotShrink(f"tokens: {op} reads a single patch, which may be merged")
        carried = [t for axes, t in found.items() if axes and self.tokens(t).any()]
        if value is not None and carried:
            self.tracks[value] = carried
        if value is not None and found and not carried:
            self.alone[value] = list(found.values())

    def stop(self, op: Op, why: str) -> CannotShrink:
        return CannotShrink(f"tokens: {op} {why}")

    # ---- one rule for each kind ----------------------------------------------------------------------------

    def _linear(self, op: Op) -> None:
        if op.axis != -1:
            self._opaque(op)
            return
        tracks = self.of(op, 0)
        if any(t.ndim - 1 in varying(t) for t in tracks):
            raise self.stop(op, "mixes tokens by weights of its own")
        self.put(op.outputs[0], tracks)

    def _shape(self, op: Op) -> None:
        given = [self.of(op, slot) for slot in range(len(op.inputs))]
        if not any(given):
            return
        given = [tracks or self.alone.get(value, []) for value, tracks in zip(op.inputs, given, strict=True)]
        made: dict[int, list[Track]] = {}
        for number in range(max(map(len, given))):
            for i, track in self._pushed(op, [tracks[number] if number < len(tracks) else None for tracks in given]):
                if len(varying(track)) > 1:
                    self._leads_to_a_grid(op)
                    return
                made.setdefault(i, []).append(track)
        for i, value in enumerate(op.outputs):
            self.put(value, made.get(i, []), op)

    def _pushed(self, op: Op, given: Sequence[Track | None]) -> list[tuple[int, Track]]:
        """One track through a shape node. Tokens that join it get numbers of their own."""
        arrays: list[np.ndarray | None] = []
        for value, track in zip(op.inputs, given, strict=True):
            filler = np.array(NONE, np.int64) if track is None else track
            arrays.append(None if value is None else np.broadcast_to(filler, self.graph.shape(value)))
        pushed = [(i, None if a is None else collapse(np.asarray(a))) for i, a in enumerate(self.graph.push(op, arrays))]
        made = [(i, track) for i, track in pushed if track is not None]
        joining = [n for n, (v, track) in enumerate(zip(op.inputs, given, strict=True)) if v is not None and track is None]
        axes = varying(made[0][1]) if made else ()
        if not joining or len(axes) != 1 or not (made[0][1] == NONE).any():
            return made
        track, labelled = made[0][1], list(given)
        start = first = max(self.end, int(track.max()) + 1)
        for n in joining:
            shape = self.graph.shape(op.inputs[n])
            if len(shape) == track.ndim:
                along = [shape[a] if a in axes else 1 for a in range(track.ndim)]
                own = labelled[n] = np.arange(first, first + shape[axes[0]]).reshape(along)
                self.alone[op.inputs[n]] = [own]
                first += shape[axes[0]]
        self.joined = max(self.joined, first - self.end)
        return self._pushed(op, labelled) if first > start else made

    def _leads_to_a_grid(self, op: Op) -> None:
        """Up through the shape nodes to where the sequence was last worked on: the first of them takes it whole."""
        value = next(v for v in op.inputs if v is not None and self.tracks.get(v))
        while (above := self.graph.producer(value)) is not None and above.kind is Kind.SHAPE and value not in self.starts:
            if not self.tracks.get(above.inputs[0]):
                break
            op, value = above, above.inputs[0]
        self.whole[op] = value

    def _elementwise(self, op: Op) -> None:
        made = op.outputs[0]
        if made is None:
            return
        rank = len(self.graph.shape(made))
        found: dict[tuple[int, ...], Track] = {}
        given = [self.of(op, slot) for slot in range(len(op.inputs))]
        for track in (t.reshape([1] * (rank - t.ndim) + list(t.shape)) for tracks in given for t in tracks):
            known = found.setdefault(varying(track), track)
            if not np.array_equal(known, track):
                raise self.stop(op, "puts together tokens from before and behind a merge")
        for value, tracks in zip(op.inputs, given, strict=True):
            if value is not None and not tracks and found:
                shape = [1] * (rank - len(self.graph.shape(value))) + list(self.graph.shape(value))
                if any(shape[axis] > 1 for axes in found for axis in axes):
                    table = self.graph.is_constant(value)
                    raise self.stop(op, "has a number for each token, which can not be merged" if table else UNMERGED)
        self.put(made, list(found.values()))

    def _reduce(self, op: Op) -> None:
        tracks = self.of(op, 0)
        if not tracks or op.outputs[0] is None:
            return
        rank = len(self.graph.shape(op.inputs[0]))
        axes = {a % rank for a in op.axes} or set(range(rank))
        over = [t for t in tracks if set(varying(t)) & axes]
        if over and is_softmax(op):
            self.keys += [(op, t.ravel(), np.array([NONE])) for t in over]
            self.put(op.outputs[0], tracks)
            return
        if over and self.graph.shape(op.outputs[0]) == self.graph.shape(op.inputs[0]):
            raise self.stop(op, "norms over tokens")
        if over:
            self.notes.append(f"{op} pools merged tokens as it pooled the patches: each counts once")
        left = [t for t in tracks if not set(varying(t)) & axes]
        if len(self.graph.shape(op.outputs[0])) < rank:
            left = [t.reshape([n for i, n in enumerate(t.shape) if i not in axes]) for t in left]
        for value in op.outputs:
            if value is not None:
                self.put(value, left)

    def _product(self, op: Op) -> None:
        left, right, out = op.spec
        made: list[Track] = []
        summed: list[Track] = []
        for spec, tracks in ((left, self.of(op, 0)), (right, self.of(op, 1))):
            for track in tracks:
                letter = spec[varying(track)[0]]
                if letter in out:
                    shape = [1] * len(out)
                    shape[out.index(letter)] = track.size
                    made.append(track.reshape(shape))
                else:
                    summed.append(track.ravel())
        if summed and (len(summed) != 2 or not np.array_equal(summed[0], summed[1])):
            raise self.stop(op, "sums over merged tokens and others")
        self.put(op.outputs[0], made)

    def _attention(self, op: Op) -> None:
        spec = op.attention
        assert spec is not None
        sides = [self.of(op, slot) for slot in range(3)]
        if not any(sides):
            return
        if any(len(tracks) > 1 for tracks in sides) or bool(sides[1]) != bool(sides[2]):
            raise self.stop(op, "takes keys and values of different sequences")
        if sides[1] and not np.array_equal(sides[1][0].ravel(), sides[2][0].ravel()):
            raise self.stop(op, "takes keys and values of different sequences")
        for slot in spec.masks:
            if slot < len(op.inputs) and op.inputs[slot] is not None:
                shape = self.graph.shape(op.inputs[slot])
                if self.tracks.get(op.inputs[slot]) or (shape[-1] > 1 or (len(shape) > 1 and shape[-2] > 1)):
                    raise self.stop(op, "has a mask with a number for each token, which is not merged")
        if sides[1]:
            count = self.graph.shape(op.inputs[0])[TOKEN_AXIS[spec.layouts[0]]]
            asked = sides[0][0].ravel() if sides[0] else np.full(count, NONE)
            self.keys.append((op, sides[1][0].ravel(), asked))
        if sides[0]:
            along = [1] * len(self.graph.shape(op.outputs[0]))
            along[TOKEN_AXIS[spec.layouts[3]]] = sides[0][0].size
            self.put(op.outputs[0], [sides[0][0].reshape(along)])

    def _opaque(self, op: Op) -> None:
        if any(self.of(op, slot) for slot in range(len(op.inputs))):
            raise self.stop(op, f"takes merged tokens and {op.why}")
