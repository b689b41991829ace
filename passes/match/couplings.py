"""From a finished flow to couplings: which classes move together, and on which rows of which weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from toastc.graphs import Kind, Op
from toastc.graphs.protocols import Reader
from toastc.plans.sites import Coupling, Member

from .flow import Flow
from .records import Source

FEW = 10  # times as many


@dataclass(frozen=True, eq=False)
class Block:
    """Classes as [groups, width], and for every row of the original [heads, width] array its group."""

    classes: np.ndarray
    group_of_head: np.ndarray
    reason: str = ""


class Ledger:
    """What the flow says of each class, looked up by its representative."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        before = flow.classes.find(np.arange(flow.classes.size))
        self.side = np.zeros(flow.classes.size, np.int8)  # 1: reached Q of a contraction, 2: reached K
        for contraction in flow.contractions:
            self.side[before[contraction.k]] = 2
            self.side[before[contraction.q]] = 1
        self.side = self.side[before]
        for contraction in flow.contractions:
            flow.classes.tie(contraction.q, contraction.k)
        self.root = flow.classes.find(np.arange(flow.classes.size))
        self.pinned = np.full(flow.classes.size, -1, np.int64)
        for number, pin in reversed(list(enumerate(flow.pins))):
            self.pinned[self.root[pin.ids]] = number
        self.nonlinear = self._flag([ids for _, ids in flow.nonlinear])
        self.scaled = self._flag(flow.scaled)
        self.heads = self._flag([np.fromiter(flow.heads, np.int64, len(flow.heads))])
        self._place = np.full(flow.classes.size, -1, np.int64)
        sources = [np.where(s.ids >= 0, self.root[s.ids], -1) for s in flow.sources]
        numbers = np.repeat(np.arange(len(sources)), [len(r) for r in sources])
        roots = np.concatenate(sources) if sources else np.zeros(0, np.int64)
        order = np.argsort(roots, kind="stable")
        self._sorted_roots, self._sorted_numbers = roots[order], numbers[order]

    def _flag(self, lists: Sequence[np.ndarray]) -> np.ndarray:
        flags = np.zeros(self.flow.classes.size, bool)
        for ids in lists:
            flags[self.root[ids[ids >= 0]]] = True
        return flags

    def sources_of(self, classes: np.ndarray) -> list[Source]:
        wanted = np.unique(classes)
        begin = np.searchsorted(self._sorted_roots, wanted, "left")
        end = np.searchsorted(self._sorted_roots, wanted, "right")
        span = slice(int(begin.min()), int(end.max()))
        numbers = self._sorted_numbers[span][np.isin(self._sorted_roots[span], wanted)]
        return [self.flow.sources[n] for n in np.unique(numbers)]

    def pin_reason(self, classes: np.ndarray) -> str:
        numbers = self.pinned[classes.ravel()]
        numbers = numbers[numbers >= 0]
        return self.flow.pins[int(numbers.min())].reason if len(numbers) else ""

    def summed(self, classes: np.ndarray) -> str:
        """What sums up other channels together than those of whole groups, which may not keep the same ones."""
        groups = [set(group) for group in classes.tolist()]
        for made in self.flow.sums:
            for row in self.root[made.rows].tolist():
                if not set(row).isdisjoint(classes.ravel().tolist()) and set(row) not in groups:
                    return f"{made.op} mixes its channels"
        return ""

    # ---- blocks and members ------------------------------------------------------------------------------

    def block(self, ids: np.ndarray) -> Block:
        """Heads that share classes become one group; classes keep the order in which they first appear."""
        if (ids < 0).any():
            return Block(np.zeros((1, 0), np.int64), np.zeros(len(ids), np.int64), "some of its channels come from no linear")
        roots = self.root[ids]
        group_of_head = np.arange(len(roots))
        if len(np.unique(roots)) == roots.size:
            return Block(roots, group_of_head)
        first_head: dict[int, int] = {}
        for head, row in enumerate(roots):
            for root in row:
                owner = first_head.setdefault(int(root), head)
                if group_of_head[owner] != group_of_head[head]:
                    group_of_head[group_of_head == group_of_head[head]] = group_of_head[owner]
        labels, group_of_head = np.unique(group_of_head, return_inverse=True)
        groups = []
        for group in range(len(labels)):
            flat = roots[group_of_head == group].ravel()
            _, first = np.unique(flat, return_index=True)
            groups.append(flat[np.sort(first)])
        if len({len(g) for g in groups}) != 1:
            return Block(roots, group_of_head, "its heads have different numbers of channels")
        return Block(np.stack(groups), group_of_head)

    def members(self, classes: np.ndarray, roles: dict[str, str]) -> tuple[tuple[Member, ...], str]:
        """The members of a coupling; or why there is no such thing."""
        try:
            return self._members(classes, roles)
        finally:
            self._place[classes.ravel()] = -1

    def _members(self, classes: np.ndarray, roles: dict[str, str]) -> tuple[tuple[Member, ...], str]:
        """One member for each weight and each copy of the channels in it; or why there is no such thing.

        `roles` renames a source's role: a linear that makes the channels, a constant they meet, a consumer.
        """
        place = self._place
        place[classes.ravel()] = np.arange(classes.size)
        found: list[Member] = []
        for source in self.sources_of(classes):
            where = np.where(source.ids >= 0, place[self.root[source.ids]], -1)
            for side in (1, 2, 0):
                rows = np.flatnonzero((where >= 0) & (self.side[source.ids] == side))
                if not len(rows):
                    continue
                counts = np.bincount(where[rows], minlength=classes.size)
                if len(set(counts.tolist())) != 1:
                    return (), f"its channels do not meet {source.op} one by one"
                order = rows[np.lexsort((rows, where[rows]))].reshape(*classes.shape, counts[0])
                role = {1: "q", 2: "k"}.get(side, roles.get(source.role, source.role))
                if source.role == "out":
                    role = roles.get("out", "out")
                name = self.flow.graph.constant_name(source.op, source.slot)
                for copy in range(counts[0]):
                    operand = (source.op, source.slot)
                    found.append(Member(name, role, source.axes, order[..., copy], operand))
        return tuple(found), ""


def coupling(ledger: Ledger, name: str, block: Block, roles: dict[str, str], macs: int, extra: str = "") -> Coupling:
    """A coupling with its members, or with the first reason why it can not be cut. `macs`: of its products."""
    groups, width = block.classes.shape
    reason = block.reason or ledger.pin_reason(block.classes) or ledger.summed(block.classes) or extra
    if not reason and ledger.heads[block.classes].any():
        reason = "its channels are the heads of a product"
    members: tuple[Member, ...] = ()
    if not block.reason:
        members, uneven = ledger.members(block.classes, roles)
        reason = reason or uneven
    costs = [cost_of(ledger.flow.graph, m) for m in members]
    each_macs = macs // max(groups * width, 1) + sum(c[0] for c in costs)
    once = {
        (ledger.flow.graph.identity(m.operand[0].inputs[m.operand[1]]), m.role, m.index.tobytes()): c[1]
        for m, c in zip(members, costs, strict=True)
    }
    each_params = sum(once.values())  # a weight may be used again
    read = sum(c[0] for m, c in zip(members, costs, strict=True) if m.role == "out")
    single = len({(m.operand, m.role) for m in members}) == len(members)
    straight = not ledger.nonlinear[block.classes].any() and not ledger.scaled[block.classes].any()
    return Coupling(name, groups, width, members, reason, single and straight, each_macs, each_params, read, block.classes)


def read_by_one(graph: Reader, made: Coupling) -> Coupling:
    """The coupling with one consumer, the last: others that see few places and whose say ends there, as in a
    squeeze-and-excitation, are cut with the channels, and what the last is fitted to makes up for them.
    """
    consumers = list(dict.fromkeys(m.operand for m in made.members if m.role == "out"))
    weights = {graph.identity(op.inputs[slot]) for op, slot in consumers}
    if len(weights) < 2:  # one may be used again and again
        return made
    last, slot = max(consumers, key=lambda operand: graph.position(operand[0].outputs[0]))
    again = {op for op, _ in consumers if graph.identity(op.inputs[1]) == graph.identity(last.inputs[slot])}
    others = [op for op, _ in consumers if op not in again]
    if not all(FEW * places(graph, op) <= places(graph, last) and ends_at(graph, op, last) for op in others):
        times = "twice" if len(consumers) == 2 else f"{len(consumers)} times"
        first = ", ".join(sorted(str(op) for op, _ in consumers)[:3]) + (", ..." if len(consumers) > 3 else "")
        return replace(made, reason=made.reason or f"its channels are used {times}: {first}")
    aside = [replace(m, role="aside") if m.role == "out" and m.operand[0] not in again else m for m in made.members]
    return replace(made, members=tuple(aside))


def places(graph: Reader, op: Op) -> int:
    """At how many places a linear is applied in one sample."""
    return op.macs // math.prod(graph.shape(op.inputs[1]))


def ends_at(graph: Reader, op: Op, end: Op) -> bool:
    """Does all that an op says pass through another?"""
    todo, seen = [op], {op, end}
    while todo:
        for value in todo.pop().outputs:
            if value in graph.outputs:
                return False
            for user, _ in graph.users(value) if value is not None else ():
                if user not in seen:
                    seen.add(user)
                    todo.append(user)
    return True


def cost_of(graph: Reader, member: Member) -> tuple[int, int]:
    """MACs and parameters of one channel of a member."""
    op, slot = member.operand
    shape = graph.shape(op.inputs[slot])
    own = math.prod(shape[a] for a in member.axes)
    return op.macs // own if op.kind in (Kind.LINEAR, Kind.CHANNELWISE) and slot == 1 else 0, math.prod(shape) // own


def linear_ops(members: Sequence[Member]) -> list[Op]:
    return [m.operand[0] for m in members if m.operand[0].kind is Kind.LINEAR and m.operand[1] == 1]
