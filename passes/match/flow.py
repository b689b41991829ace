"""Labels through the graph: which weight rows arrive on which axis of which product.

Every linear's output channels are numbered, and one topological walk carries the numbers on. Shape nodes are
executed on them; elementwise nodes tie the numbers that meet; a product over an axis that carries numbers is a
*contraction* (Q.K'), any other product a *mix* (P.V) that lets the numbers of its value operand pass; a linear
that contracts numbers is their *consumer*. Whatever else touches numbers pins them, with a reason.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from toastc.graphs import Graph, Kind, Op, Value
from toastc.labels import NONE, Classes, collapse, varying


@dataclass(frozen=True, eq=False)
class Source:
    """Positions of operand `slot` of `op`, flattened over `axes`, and the channel each one carries."""

    op: Op
    slot: int
    axes: tuple[int, ...]
    ids: np.ndarray
    role: str  # "in": a linear's rows; "with": a constant that meets the channels; "out": a consumer's columns


@dataclass(frozen=True, eq=False)
class Contraction:
    """Q.K': `q`, `k` [groups, width]; `heads` [groups] are the numbers its output carries for its groups."""

    op: Op
    q: np.ndarray
    k: np.ndarray
    heads: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Mix:
    """P.V: `value` [groups, width] and the heads P carries, [groups] or None."""

    op: Op
    slot: int  # the slot of P
    value: np.ndarray
    heads: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Pin:
    op: Op | None
    ids: np.ndarray
    reason: str


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
    weights: dict[Hashable, list[tuple[Op, np.ndarray]]] = field(default_factory=dict)  # the linears of each weight

    def run(self) -> Flow:
        rules = {
            Kind.LINEAR: self._linear,
            Kind.PRODUCT: self._product,
            Kind.ATTENTION: self._attention,
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
        return self

    # ---- helpers -------------------------------------------------------------------------------------------

    def of(self, op: Op, slot: int) -> np.ndarray | None:
        value = op.inputs[slot] if slot < len(op.inputs) else None
        return None if value is None else self.labels.get(value)

    def put(self, value: Value | None, labels: np.ndarray | None) -> None:
        if value is not None and labels is not None:
            self.labels[value] = labels

    def pin(self, op: Op | None, ids: np.ndarray, reason: str) -> None:
        self.pins.append(Pin(op, np.unique(ids[ids >= 0]), reason))

    def _meet_constant(self, op: Op, slot: int, labels: np.ndarray) -> bool:
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
                self._meet_constant(op, 2, labels)
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

    def _with_constant(self, op: Op, slot: int, labels: np.ndarray) -> None:
        per_channel = self._meet_constant(op, slot, labels)
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
            axes = op.axes or tuple(range(labels.ndim))
            if slot == 0 and not any(labels.shape[a] > 1 for a in axes) and self._keeps_rank(op):
                self.put(op.outputs[0], labels)
            else:
                self.pin(op, labels, f"{op} mixes its channels")

    def _keeps_rank(self, op: Op) -> bool:
        return op.outputs[0] is not None and len(self.graph.shape(op.outputs[0])) == len(self.graph.shape(op.inputs[0]))

    def _opaque(self, op: Op) -> None:
        for slot in range(len(op.inputs)):
            labels = self.of(op, slot)
            if labels is not None:
                self.pin(op, labels, f"{op} is not understood" if not op.axes else f"{op} mixes its channels")

    # ---- products ------------------------------------------------------------------------------------------

    def _product(self, op: Op) -> None:
        left, right, out = op.spec
        a, b = self.of(op, 0), self.of(op, 1)
        if a is None and b is None:
            return
        summed = [x for x in left if x in right and x not in out]
        carried = [x for x in summed if self._size(a, left, x) > 1 or self._size(b, right, x) > 1]
        if carried:
            return self._contract(op, a, b, carried)
        free = [[x for x in own if x in out and x not in other] for own, other in ((left, right), (right, left))]
        carries = [
            t is not None and any(self._size(t, s, x) > 1 for x in f) for t, s, f in ((a, left, free[0]), (b, right, free[1]))
        ]
        if all(carries):
            for labels in (a, b):
                self.pin(op, labels, f"both operands of {op} carry channels outwards")  # type: ignore[arg-type]
            return None
        value, spec, slot = (b, right, 0) if carries[1] or (not carries[0] and b is not None) else (a, left, 1)
        if value is None:
            return None
        other = a if slot == 0 else b
        out_labels = self._over(value, spec, out)
        if not any(carries):  # nothing but heads on the axes both share
            if other is not None:
                self.classes.tie(out_labels, self._over(other, left if slot == 0 else right, out))
            self.put(op.outputs[0], out_labels)
            return None
        letters = [x for x in spec if x in out and self._size(value, spec, x) > 1]
        groups = [x for x in letters if x in left and x in right]
        inner = [x for x in letters if x not in groups]
        ids = self._over(value, spec, "".join(groups + inner))
        ids = ids.reshape(int(np.prod(ids.shape[: len(groups)])), -1)
        heads = None
        if other is not None:
            other_spec = left if slot == 0 else right
            heads = self._heads_of(other, other_spec, groups)
            if heads is None:
                self.pin(op, other, f"{op} does not keep its heads apart")
        self.mixes.append(Mix(op, slot, ids, heads))
        self.put(op.outputs[0], out_labels)
        return None

    def _heads_of(self, labels: np.ndarray, spec: str, groups: list[str]) -> np.ndarray | None:
        if any(self._size(labels, spec, x) > 1 for x in spec if x not in groups):
            return None
        return self._over(labels, spec, "".join(groups)).reshape(-1)

    def _contract(self, op: Op, a: np.ndarray | None, b: np.ndarray | None, carried: list[str]) -> None:
        left, right, out = op.spec
        if a is None or b is None:
            slot, labels, spec = (0, b, right) if a is None else (1, a, left)
            assert labels is not None
            if self.graph.is_constant(op.inputs[slot]):
                own = left if slot == 0 else right
                letters = "".join(sorted(set(left) | set(right)))
                wide = self._over(labels, spec, letters)
                moved = self._over(wide, letters, own) if set(spec) & set(own) else labels
                self._meet_constant(op, slot, moved)
                made = self.sources[-1]
                full = np.full(self.graph.shape(op.inputs[slot]), NONE, np.int64)
                view = [full.shape[i] if i in made.axes else 1 for i in range(full.ndim)]
                full = np.broadcast_to(made.ids.reshape(view), full.shape)
                a, b = (collapse(full), b) if slot == 0 else (a, collapse(full))
            else:
                return self.pin(op, labels, f"{op} multiplies it with a tensor no linear makes")
        assert a is not None and b is not None
        shared = [x for x in left if x in right and x in out]
        groups = [x for x in shared if self._size(a, left, x) > 1 or self._size(b, right, x) > 1]
        stray = [x for t, s in ((a, left), (b, right)) for x in s if self._size(t, s, x) > 1 and x not in groups + carried]
        if stray:
            for labels in (a, b):
                self.pin(op, labels, f"{op} carries its channels outwards and sums over them at once")
            return None
        order = "".join(groups + carried)
        q, k = np.broadcast_arrays(self._over(a, left, order), self._over(b, right, order))
        count = int(np.prod(q.shape[: len(groups)]))
        heads = None
        if count > 1:
            heads = self.classes.new(count)
            sizes = [q.shape[groups.index(x)] if x in groups else 1 for x in out]
            order_out = [x for x in out if x in groups]
            array = heads.reshape(q.shape[: len(groups)])
            array = np.transpose(array, [groups.index(x) for x in order_out]).reshape(sizes)
            self.put(op.outputs[0], np.ascontiguousarray(array))
        self.contractions.append(Contraction(op, q.reshape(count, -1), k.reshape(count, -1), heads))
        return None

    @staticmethod
    def _size(labels: np.ndarray | None, spec: str, letter: str) -> int:
        return labels.shape[spec.index(letter)] if labels is not None and letter in spec else 1

    @staticmethod
    def _over(labels: np.ndarray, spec: str, letters: str) -> np.ndarray:
        """Labels over `spec` seen over `letters`: axes are moved, missing ones have size 1, dropped ones are flat."""
        index = tuple(slice(None) if x in letters else 0 for x in spec)
        kept = [x for x in spec if x in letters]
        array = labels[index]
        array = np.transpose(array, [kept.index(x) for x in letters if x in kept])
        return array.reshape([array.shape[[y for y in letters if y in kept].index(x)] if x in kept else 1 for x in letters])

    # ---- softmax(QK')V as one node -------------------------------------------------------------------------

    def _attention(self, op: Op) -> None:
        spec = op.attention
        assert spec is not None
        counts = (spec.heads, spec.kv_heads, spec.kv_heads)
        q, k, v = (to_heads(self._operand(op, i), spec.layouts[i], counts[i]) for i in range(3))
        if spec.bias >= 0:
            self._attention_bias(op, (q, k, v))
        repeat = spec.heads // spec.kv_heads
        heads = self.classes.new(spec.heads)
        per_head = heads.reshape(1, -1, 1, 1)
        for slot in spec.masks:
            if slot < len(op.inputs) and op.inputs[slot] is not None:
                if self.of(op, slot) is not None:
                    self.pin(op, self.labels[op.inputs[slot]], f"it is a mask of {op}")
                mask_shape = self.graph.shape(op.inputs[slot])
                if len(mask_shape) >= 3 and mask_shape[-3] > 1:
                    if self.graph.is_constant(op.inputs[slot]):
                        self._meet_constant(op, slot, per_head)
                    else:
                        self.pin(op, heads, f"the mask of {op} has one entry for each head")
        if q is not None and k is not None and self._fits(q) and self._fits(k):
            rows_q, rows_k = rows(q, spec.heads), np.repeat(rows(k, spec.kv_heads), repeat, axis=0)
            self.contractions.append(Contraction(op, rows_q, rows_k, heads))
        else:
            for slot, labels in ((0, q), (1, k)):
                if labels is not None:
                    self.pin(op, labels, f"{op} multiplies it with a tensor no linear makes" if slot < 2 else "")
        if v is None or not self._fits(v):
            if v is not None:
                self.pin(op, v, f"{op} takes it along another axis")
            return
        value = np.repeat(rows(v, spec.kv_heads), repeat, axis=0)
        self.mixes.append(Mix(op, -1, value, heads))
        self.put(op.outputs[0], from_heads(value.reshape(1, spec.heads, 1, -1), spec.layouts[3]))

    def _operand(self, op: Op, slot: int) -> np.ndarray | None:
        """Labels of q, k or v; a constant query (a learnt token's) is numbered here."""
        value = op.inputs[slot]
        if slot > 1 or value is None or not self.graph.is_constant(value):
            return self.of(op, slot)
        assert op.attention is not None
        axes = {"bhnd": (1, 3), "bnhd": (2, 3), "bn(hd)": (2,)}[op.attention.layouts[slot]]
        shape = self.graph.shape(value)
        ids = self.classes.new(int(np.prod([shape[a] for a in axes])))
        self.sources.append(Source(op, slot, axes, ids, "with"))
        return ids.reshape([size if i in axes else 1 for i, size in enumerate(shape)])

    def _attention_bias(self, op: Op, labels: tuple[np.ndarray | None, ...]) -> None:
        """One vector [q|k|v] added inside the node."""
        assert op.attention is not None
        if any(x is None for x in labels):
            for x in labels:
                if x is not None:
                    self.pin(op, x, f"{op} adds one bias to it and to a tensor no linear makes")
            return
        flat = np.concatenate([rows(x, op.attention.heads).reshape(-1) for x in labels])  # type: ignore[arg-type]
        self._meet_constant(op, op.attention.bias, flat)

    @staticmethod
    def _fits(labels: np.ndarray) -> bool:
        return set(varying(labels)) <= {1, 3} and bool((labels >= 0).all())


def rows(labels: np.ndarray, heads: int) -> np.ndarray:
    """[1, heads or 1, 1, width] as [heads, width]."""
    return np.broadcast_to(labels[0, :, 0], (heads, labels.shape[3]))


def to_heads(labels: np.ndarray | None, layout: str, heads: int) -> np.ndarray | None:
    """Labels in a node's own layout as [b, heads, n, width]."""
    if labels is None or layout == "bhnd":
        return labels
    if layout == "bnhd":
        return labels.transpose(0, 2, 1, 3)
    b, n, flat = labels.shape
    if flat == 1:
        return labels.reshape(b, 1, n, 1)
    return labels.reshape(b, n, heads, flat // heads).transpose(0, 2, 1, 3)


def from_heads(labels: np.ndarray, layout: str) -> np.ndarray:
    if layout == "bhnd":
        return labels
    swapped = labels.transpose(0, 2, 1, 3)
    return swapped if layout == "bnhd" else np.ascontiguousarray(swapped).reshape(*swapped.shape[:2], -1)
