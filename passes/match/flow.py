"""What is known of the channel numbers that travel through a graph. `rules` moves them on, op by op."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from toastc.graphs import Op, Value
from toastc.graphs.labels import Classes
from toastc.graphs.protocols import Reader

from .records import Contraction, Mix, Pin, Source, Sum


@dataclass
class Flow:
    graph: Reader
    classes: Classes = field(default_factory=Classes)
    labels: dict[Value, np.ndarray] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    mixes: list[Mix] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    nonlinear: list[tuple[Op, np.ndarray]] = field(default_factory=list)  # passed through an activation or a gate
    silent: set[Value] = field(default_factory=set)  # nothing where a channel is padded with zeros
    told: set[Value] = field(default_factory=set)  # elsewhere: worked out from what stays
    bent: set[Value] = field(default_factory=set)  # passed an activation or a gate
    statistics: list[Op] = field(default_factory=list)  # sums and norms over channels
    expanded: list[tuple[Op, int]] = field(default_factory=list)  # operands that were repeated along channels first
    sums: list[Sum] = field(default_factory=list)
    scaled: list[np.ndarray] = field(default_factory=list)  # multiplied by a constant per channel
    heads: set[int] = field(default_factory=set)  # numbers that are heads, of the scores of contractions
    talking: set[Op] = field(default_factory=set)  # linears over heads
    weights: dict[Hashable, list[tuple[Op, np.ndarray | None]]] = field(
        default_factory=dict
    )  # the linears of each, what they read

    def of(self, op: Op, slot: int) -> np.ndarray | None:
        value = op.inputs[slot] if slot < len(op.inputs) else None
        return None if value is None else self.labels.get(value)

    def put(self, value: Value | None, labels: np.ndarray | None) -> None:
        if value is not None and labels is not None:
            self.labels[value] = labels

    def are_heads(self, labels: np.ndarray) -> bool:
        return self.are_among(labels, np.fromiter(self.heads, np.int64, len(self.heads)))

    def are_sums(self, labels: np.ndarray) -> bool:
        """Is it one number for the channels of each head, that was summed up of them?"""
        return bool(self.sums) and self.are_among(labels, np.concatenate([made.heads for made in self.sums]))

    def are_among(self, labels: np.ndarray, heads: np.ndarray) -> bool:
        """The first tells nearly always."""
        ids = labels[labels >= 0]
        return bool(all(np.isin(self.classes.find(some), self.classes.find(heads)).all() for some in (ids[:1], ids)))

    def name_heads(self, rows: np.ndarray, heads: np.ndarray) -> None:
        """What was summed up of the channels of a head goes where these heads of a product go."""
        roots = self.classes.find(rows)
        for made in self.sums:
            for number, row in zip(made.heads, self.classes.find(made.rows), strict=True):
                same = np.isin(roots, row).all(axis=1)
                self.classes.tie(np.full(int(same.sum()), number), heads[same])

    def pin(self, op: Op | None, ids: np.ndarray, reason: str) -> None:
        self.pins.append(Pin(op, np.unique(ids[ids >= 0]), reason))

    def meet_channels(self, op: Op, slot: int, labels: np.ndarray) -> bool:
        """Tie the rows of a constant, one for each channel, to the channels, which stand on the axis of the op."""
        value, axis = op.inputs[slot] if slot < len(op.inputs) else None, op.axis % labels.ndim
        if value is None or not self.graph.is_constant(value) or self.graph.shape(value)[:1] != labels.shape[axis : axis + 1]:
            return value is None
        own = self.classes.new(labels.shape[axis])
        self.classes.tie(own.reshape([-1 if i == axis else 1 for i in range(labels.ndim)]), labels)
        self.sources.append(Source(op, slot, (0,), own, "with"))
        return True

    def meet_constant(self, op: Op, slot: int, labels: np.ndarray) -> bool:
        """Tie the elements of a constant operand to the labels they meet; False if it is the same for all."""
        shape = self.graph.shape(op.inputs[slot])
        rank = labels.ndim
        axes = [i for i in range(len(shape)) if shape[i] > 1 and labels.shape[i + rank - len(shape)] > 1]
        if not axes:
            return False
        ids = self.classes.new(int(np.prod([shape[i] for i in axes])))
        full = [shape[i] if i in axes else 1 for i in range(len(shape))]
        self.classes.tie(ids.reshape([1] * (rank - len(shape)) + full), labels)
        self.sources.append(Source(op, slot, tuple(axes), ids, "with"))
        return True
