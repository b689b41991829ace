"""Labels through the graph: which weight rows arrive on which axis of which product.

Every linear's output channels are numbered, and one topological walk carries the numbers on. Shape nodes are
executed on them; elementwise nodes tie the numbers that meet; a product over an axis that carries numbers is a
*contraction* (Q.K'), any other product a *mix* (P.V) that lets the numbers of its value operand pass; a linear
that contracts numbers is their *consumer*. Whatever else touches numbers pins them, with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from toastc.graphs import Graph, Kind, Op, Value
from toastc.graphs.labels import NONE, Classes, collapse, varying

from .fused import attention
from .products import product
from .records import Contraction, Mix, Pin, Source

SUMS = {"reducemean", "reducesum", "mean", "sum"}
PASSED_THROUGH = (Kind.ELEMENTWISE, Kind.REDUCE, Kind.SHAPE)
NEVER_NOTHING = {"exp", "sigmoid", "softplus", "softmax", "cosh"}  # not even of 0
BOUNDS = {"add", "sub", "clip", "clamp", "clamp_min", "max", "maximum"}  # with a number, they keep it from being 0


@dataclass
class Flow:
    graph: Graph
    classes: Classes = field(default_factory=Classes)
    labels: dict[Value, np.ndarray] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    mixes: list[Mix] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    nonlinear: list[tuple[Op, np.ndarray]] = field(default_factory=list)  # passed through an activation or a gate
    shifted: list[np.ndarray] = field(default_factory=list)  # moved by a constant that is not per channel
    scaled: list[np.ndarray] = field(default_factory=list)  # multiplied by a constant per channel
    heads: set[int] = field(default_factory=set)  # numbers that are heads, of the scores of contractions
    weights: dict[Hashable, list[tuple[Op, np.ndarray]]] = field(default_factory=dict)  # the linears of each weight

    def run(self) -> Flow:
        rules = {
            Kind.LINEAR: self._linear,
            Kind.PRODUCT: lambda op: product(self, op),
            Kind.ATTENTION: lambda op: attention(self, op),
            Kind.SHAPE: self._shape,
            Kind.ELEMENTWISE: self._elementwise,
            Kind.REDUCE: self._reduce,
            Kind.OPAQUE: self._opaque,
        }
        for op in self.graph.ops:
            rules[op.kind](op)
        for value in self.graph.outputs:
            if value in self.labels:
                self.pin(None, self.labels[value], "is an output of the model")
        for source in self.sources:
            if source.op.inputs[source.slot] in self.graph.outputs:
                self.pin(None, source.ids, "is an output of the model")
        return self

    # ---- helpers -------------------------------------------------------------------------------------------

    def of(self, op: Op, slot: int) -> np.ndarray | None:
        value = op.inputs[slot] if slot < len(op.inputs) else None
        return None if value is None else self.labels.get(value)

    def put(self, value: Value | None, labels: np.ndarray | None) -> None:
        if value is not None and labels is not None:
            self.labels[value] = labels

    def are_heads(self, labels: np.ndarray) -> bool:
        heads = np.fromiter(self.heads, np.int64, len(self.heads))
        return bool(np.isin(self.classes.find(labels[labels >= 0]), self.classes.find(heads)).all())

    def pin(self, op: Op | None, ids: np.ndarray, reason: str) -> None:
        self.pins.append(Pin(op, np.unique(ids[ids >= 0]), reason))

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

    # ---- one rule for each kind ----------------------------------------------------------------------------

    def _linear(self, op: Op) -> None:
        given = self.of(op, 0)
        if given is not None:
            if varying(given) == (given.ndim - 1,):
                self.sources.append(Source(op, 1, (op.weight_axes[0],), given.reshape(-1), "out"))
            else:
                self.pin(op, given, f"{op} is applied along another axis of it")
        rank = len(self.graph.shape(op.outputs[0]))
        width = self.graph.shape(op.inputs[1])[op.weight_axes[1]]
        ids = self.classes.new(width)
        self.sources.append(Source(op, 1, (op.weight_axes[1],), ids, "in"))
        labels = ids.reshape([1] * (rank - 1) + [width])
        self._note_shared(op, given, ids)
        if len(op.inputs) > 2 and op.inputs[2] is not None:
            if self.graph.is_constant(op.inputs[2]):
                self.meet_constant(op, 2, labels)
            else:
                self.pin(op, labels, f"{op} adds a bias that is not a constant")
        self.put(op.outputs[0], labels)

    def _note_shared(self, op: Op, given: np.ndarray | None, ids: np.ndarray) -> None:
        """A weight that several linears share would have to be copied to be cut: pin it everywhere."""
        own = np.concatenate([ids, *([given.ravel()] if given is not None else [])])
        twins = self.weights.setdefault(self.graph.identity(op.inputs[1]), [])
        for other, other_ids in twins:
            self.pin(op, own, f"its weight is shared by {other} and {op}")
            self.pin(other, other_ids, f"its weight is shared by {other} and {op}")
        twins.append((op, own))

    def _shape(self, op: Op) -> None:
        arrays = [self.labels.get(v) if v is not None else None for v in op.inputs]
        if all(a is None for a in arrays):
            return
        full: list[np.ndarray | None] = []
        for value, array in zip(op.inputs, arrays, strict=True):
            if value is None:
                full.append(None)
                continue
            shape = self.graph.shape(value)
            filler = np.array(NONE, np.int64) if array is None else array
            full.append(np.broadcast_to(filler, shape))
        for value, array in zip(op.outputs, self.graph.push(op, full), strict=True):
            if value is not None and array is not None:
                self.put(value, collapse(np.asarray(array)))

    def _elementwise(self, op: Op) -> None:
        given = [(slot, labels) for slot in range(len(op.inputs)) if (labels := self.of(op, slot)) is not None]
        if not given or op.outputs[0] is None:
            return
        rank = len(self.graph.shape(op.outputs[0]))
        merged = given[0][1].reshape([1] * (rank - given[0][1].ndim) + list(given[0][1].shape))
        for _, labels in given[1:]:
            labels = labels.reshape([1] * (rank - labels.ndim) + list(labels.shape))
            self.classes.tie(merged, labels)
            a, b = np.broadcast_arrays(merged, labels)
            if ((a < 0) != (b < 0)).any():
                self.pin(op, np.concatenate([a[b < 0], b[a < 0]]), f"{op} combines it with a tensor no linear makes")
            merged = np.where(a >= 0, a, b)
        if self._may_divide_by_nothing(op, [slot for slot, _ in given]):
            self.pin(op, merged, f"{op} divides by it")
        lone = True
        for slot, value in enumerate(op.inputs):
            if value is None or any(slot == s for s, _ in given):
                continue
            lone = False
            if self.graph.is_constant(value):
                self._with_constant(op, slot, merged)
            else:
                self._with_tensor(op, value, merged)
        if op.effect == "nonlinear" or (len(given) > 1 and op.effect == "linear"):
            self.nonlinear.append((op, np.unique(merged)))
        elif op.effect == "affine" and lone and len(given) == 1:
            self.shifted.append(np.unique(merged))  # x + 1 with a number, not a tensor
        self.put(op.outputs[0], merged)

    def _may_divide_by_nothing(self, op: Op, slots: list[int]) -> bool:
        """A channel that is gone is 0 where the result is padded back; something may be added to it before."""
        kind = op.type.lower()
        slot = 1 if kind in ("div", "true_divide") else 0 if kind in ("reciprocal", "rsqrt") else -1
        value = op.inputs[slot] if slot in slots else None
        while value is not None and (above := self.graph.producer(value)) is not None and above.kind in PASSED_THROUGH:
            if above.type.lower() in NEVER_NOTHING or (above.type.lower() in BOUNDS and self._with_number(above)):
                return False
            value = next((v for v in above.inputs if v in self.labels), None)
        return value is not None

    def _with_number(self, op: Op) -> bool:
        numbers = [v for v in op.inputs if v is not None and self.graph.is_constant(v) and math.prod(self.graph.shape(v)) == 1]
        return bool(numbers) or sum(v is not None for v in op.inputs) == 1

    def _with_constant(self, op: Op, slot: int, labels: np.ndarray) -> None:
        per_channel = self.meet_constant(op, slot, labels)
        if per_channel and op.type.lower() in ("div", "true_divide") and slot == 1:
            self.pin(op, labels, f"{op} divides each channel by its own number")
        elif per_channel and op.effect == "linear":
            self.scaled.append(np.unique(labels))
        elif not per_channel and op.effect == "affine":
            self.shifted.append(np.unique(labels))
        elif not per_channel and op.type.lower() in ("div", "true_divide") and slot == 0:
            self.nonlinear.append((op, np.unique(labels)))

    def _with_tensor(self, op: Op, value: Value, labels: np.ndarray) -> None:
        shape = self.graph.shape(value)
        shape = (1,) * (labels.ndim - len(shape)) + tuple(shape)
        if any(shape[i] > 1 for i in varying(labels)):
            self.pin(op, labels, f"{op} combines it with a tensor no linear makes")
        elif op.effect == "affine":
            self.shifted.append(np.unique(labels))

    def _reduce(self, op: Op) -> None:
        for slot in range(len(op.inputs)):
            labels = self.of(op, slot)
            if labels is None:
                continue
            axes = tuple(a % labels.ndim for a in op.axes or range(labels.ndim))
            made = op.outputs[0]
            rank = -1 if made is None else len(self.graph.shape(made))
            if slot or any(labels.shape[a] > 1 for a in axes) or rank not in (labels.ndim, labels.ndim - len(axes)):
                self.pin(op, labels, f"{op} mixes its channels")
                continue
            if op.type.lower() not in SUMS:
                self.scaled.append(np.unique(labels))  # each channel by itself, but no sum of them
            self.put(made, labels if rank == labels.ndim else labels.squeeze(axes))

    def _opaque(self, op: Op) -> None:
        for slot in range(len(op.inputs)):
            labels = self.of(op, slot)
            if labels is not None:
                self.pin(op, labels, f"{op} {op.why}")
