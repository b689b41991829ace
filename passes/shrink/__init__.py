"""shrink: make the graph as small as the plan says.

Weights are cut by their members' indices (`cuts`), the shape plumbing next to them is written anew
(`regions`), other shape nodes that carry a size of a cut axis get the new size, and the softmax scale is
written out, because every runtime's default follows the head_dim that has just changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from toastc.graphs import Kind, Op, Value, lone_shape
from toastc.graphs.labels import varying
from toastc.graphs.protocols import Editor
from toastc.graphs.rearrange import compact
from toastc.plans.plan import Choice, Plan, Select, check_plan
from toastc.plans.sites import Coupling, Member, Site
from toastc.system.errors import CannotShrink

from ..match.couplings import Ledger
from ..match.records import Source
from ..state import State
from .cuts import Cut, growth, install, mixtures, told, with_bias
from .regions import emit_exits, pieces_of, plan_exits, rebuild_above
from .selections import readers, take, taken, write_selections
from .shapes import picked_at_once, what_remains
from .statistics import put_right


@dataclass(frozen=True)
class Shrink:
    """Cut the weights and rewrite the graph around them, as the plan says."""

    name = "shrink"

    def __call__(self, state: State) -> State:
        check_plan(state.plan, state.sites)
        shrink(state.graph, state.matched, state.sites, state.plan)
        return replace(state, matched=None)


def shrink(graph: Editor, ledger: Ledger, sites: tuple[Site, ...], plan: Plan) -> None:
    Work(graph, ledger, sites, plan).rewrite()
    write_selections(graph, sites, plan)
    graph.finish()


class Work:
    """One shrink: `touched[value]` is the collapsed mask of what stays of a value that loses something."""

    def __init__(self, graph: Editor, ledger: Ledger, sites: tuple[Site, ...], plan: Plan) -> None:
        self.graph, self.ledger, self.sites, self.plan = graph, ledger, sites, plan
        self.stays = np.ones(len(ledger.root) + 1, bool)  # by class; the last entry stands for "no label"
        self.choices: list[tuple[Coupling, Choice, list[int]]] = []
        for site in sites:
            self._choose(site, plan)
        self.touched: dict[Value, np.ndarray] = {}
        for value, labels in ledger.flow.labels.items():
            mask = self._mask(labels)
            if not mask.all():
                self.touched[value] = mask
        self.orders: dict[Source, np.ndarray] = {}
        self.gone: set[Op] = set()

    def _choose(self, site: Site, plan: Plan) -> None:
        heads = plan.get(site.name, "heads")
        groups = None if heads is None else heads.index[0].tolist()
        if heads is not None and site.heads is not None:
            classes = of(site.heads)
            self._drop(classes, np.repeat(heads.index, len(classes), axis=0))
        for coupling in site.couplings:
            choice = plan.get(site.name, coupling.name)
            every = list(range(coupling.groups))
            if groups is not None and coupling.groups == site.heads.width:  # type: ignore[union-attr]
                self.stays[np.delete(of(coupling), groups, axis=0)] = False
                every = groups
            if choice is None or isinstance(choice, Select):
                continue
            self._drop(of(coupling), choice.index)
            self.choices.append((coupling, choice, every))

    def _drop(self, classes: np.ndarray, index: np.ndarray) -> None:
        kept = np.zeros(classes.shape, bool)
        np.put_along_axis(kept, index.astype(np.int64), True, axis=1)
        self.stays[classes[~kept]] = False

    def _mask(self, labels: np.ndarray) -> np.ndarray:
        return self.stays[np.where(labels >= 0, self.ledger.root[labels], -1)]

    def full_mask(self, value: Value) -> np.ndarray:
        mask = self.touched.get(value, np.array(True))
        return np.broadcast_to(mask, self.graph.shape(value))

    # ---- the rewrite -----------------------------------------------------------------------------------

    def rewrite(self) -> None:
        sources = [s for s in self.ledger.flow.sources if not self._mask(s.ids).all()]
        for source in sources:
            if source.role == "in" and source.op.kind is Kind.LINEAR:
                self._below(source)
        for source in sources:
            if source.role == "out" and source.op.axis == -1:
                chain, order = rebuild_above(self.graph, source.op, 0, self.full_mask, partial(self._in_order, source))
                self.gone.update(chain)
                if order is not None:
                    self.orders[source] = order
        for op in self.graph.ops:
            if op.kind is Kind.SHAPE and op not in self.gone and self._meets(op):
                self._resize(op)
            elif op.kind is Kind.ATTENTION and self._meets(op):
                self._attention(op)
        self._cut(sources)
        put_right(self.graph, self.ledger.flow, self.full_mask)

    def _meets(self, op: Op) -> bool:
        values = (*op.inputs, *op.outputs, *(self.graph.sizes_from(op) if op.kind is Kind.SHAPE else ()))
        return any(v in self.touched for v in values if v is not None)

    def _in_order(self, source: Source, order: np.ndarray) -> bool:
        """Do the channels of every group arrive at a consumer in the order in which the plan counts them?"""
        return all((np.diff(row[row >= 0]) > 0).all() for places in self._places(source, order) for row in np.concatenate(places))

    def _copies_in_order(self, source: Source, order: np.ndarray) -> bool:
        """Do the rows of a channel that has several stand in the order in which they stood?"""
        return all((np.diff(places, axis=0) >= 0).all() for places in self._places(source, order))

    def _places(self, source: Source, order: np.ndarray) -> Iterator[list[np.ndarray]]:
        """For each coupling and role: where its channels will stand in an operand, once for each copy; -1 where they go."""
        place = np.full(source.ids.size, -1)
        place[order] = np.arange(len(order))
        for coupling in (c for site in self.sites for c in site.couplings):
            by_role: dict[str, list[np.ndarray]] = {}
            for m in coupling.members:
                if m.operand == (source.op, source.slot) and m.axes == source.axes:
                    by_role.setdefault(m.role, []).append(place[m.index])
            yield from by_role.values()

    def _resize(self, op: Op) -> None:
        """New sizes and positions; or, where what stays in between is no grid, one node for a row of them that picks at once."""
        try:
            self.graph.resize(op, *what_remains(self.graph, op, self.full_mask))
        except CannotShrink:
            row = picked_at_once(self.graph, op, self.full_mask, self.gone)
            if not row:
                raise
            self.gone.update(row)

    def _below(self, source: Source) -> None:
        """Follow a linear's output to where shape nodes begin, and write those anew."""
        root, same_axis = source.op.outputs[0], [source]
        same_axis += self._constants(source.op, besides=source)
        while True:
            users = self.graph.users(root)
            op = users[0][0] if len(users) == 1 else None
            if op is None or op.kind is not Kind.ELEMENTWISE:
                break
            others = [v for v in op.inputs if v is not None and v is not root]
            if not all(self.graph.is_constant(v) for v in others) or self.graph.shape(op.outputs[0]) != self.graph.shape(root):
                break
            same_axis += self._constants(op)
            root = op.outputs[0]
        labels = self.ledger.flow.labels.get(root)
        if labels is None or varying(labels) != (labels.ndim - 1,) or source.op.axis != -1:
            return
        exits = plan_exits(self.graph, root, self._mask(labels).reshape(-1))
        if exits is None:
            return
        order = np.concatenate(pieces_of(exits))
        if not self._copies_in_order(source, order):
            return
        for own in same_axis:
            self.orders[own] = order
        self._retire(root, {e.value for e in exits})
        emit_exits(self.graph, root, exits)

    def _constants(self, op: Op, besides: Source | None = None) -> list[Source]:
        return [s for s in self.ledger.flow.sources if s.op is op and s.role == "with" and s is not besides]

    def _retire(self, value: Value, exits: set[Value]) -> None:
        for op, _ in self.graph.users(value):
            if lone_shape(op):
                self.gone.add(op)
                for out in op.outputs:
                    if out is not None and out not in exits:
                        self._retire(out, exits)

    def _attention(self, op: Op) -> None:
        spec = op.attention
        assert spec is not None
        kept = spec.heads, spec.kv_heads
        for mix in self.ledger.flow.mixes:
            if mix.op is op:
                heads = np.asarray(self._mask(mix.value).any(axis=1))
                kept = int(heads.sum()), int(heads[:: spec.heads // spec.kv_heads].sum())
        self.graph.set_attention(op, kept[0], kept[1], spec.scale)

    def _cut(self, sources: list[Source]) -> None:
        by_operand: dict[tuple[Op, int], list[Cut]] = {}
        members: dict[tuple[Op, int], list[tuple[Member, Choice, list[int]]]] = {}
        order = {op: i for i, op in enumerate(self.graph.ops)}
        for inputs, kept in taken(self.sites, self.plan):
            for member in inputs.members:
                by_operand.setdefault(member.operand, []).append(Cut(member.axes, kept.index[0]))
            take(self.graph, sorted(readers(inputs), key=order.__getitem__), kept.index[0])
        for coupling, choice, groups in self.choices:
            for member in coupling.members:
                members.setdefault(member.operand, []).append((member, choice, groups))
        for source in sources:
            kept_rows = self.orders.get(source)
            if kept_rows is None:
                shape = [self.graph.shape(source.op.inputs[source.slot])[a] for a in source.axes]
                small = compact(self._mask(source.ids).reshape(shape))
                assert small is not None, "shape nodes on the way to it would have been no grid before"
                kept_rows = small[1]
            mixed = [
                m
                for member, choice, groups in members.get((source.op, source.slot), ())
                if member.axes == source.axes
                for m in mixtures(member, choice, groups, kept_rows)
            ]
            by_operand.setdefault((source.op, source.slot), []).append(Cut(source.axes, kept_rows, tuple(mixed)))
        plus: dict[tuple[Op, int], list[tuple[Hashable, Callable[[], np.ndarray]]]] = {}
        for coupling, choice, _ in self.choices:
            for member in coupling.members if choice.shifts else ():
                if member.role == "out":
                    plus.setdefault(with_bias(self.graph, member.operand[0], by_operand), []).append(
                        ((id(choice), self.graph.identity(member.operand[0].inputs[1])), growth(self.graph, member, choice))
                    )
        made: dict[Hashable, tuple[Op, int]] = {}  # what is cut the same way is one tensor, if it was one
        for op, slot in sorted(by_operand | plus, key=lambda operand: order.get(operand[0], -1)):
            cuts, more = by_operand.get((op, slot), ()), plus.get((op, slot), ())
            alike = self.graph.identity(op.inputs[slot]), tuple(map(told, cuts)), tuple(key for key, _ in more)
            if op.kind is Kind.LINEAR and (twin := made.setdefault(alike, (op, slot))) != (op, slot):
                self.graph.redirect(op, slot, self.graph.operand(*twin))
            else:
                install(self.graph, op, slot, cuts, [make for _, make in more])


def of(coupling: Coupling) -> np.ndarray:
    """The matcher's own numbers of its channels, which every coupling has that was matched."""
    assert coupling.classes is not None
    return coupling.classes
