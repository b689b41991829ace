"""keep-promise: the smallest budget at which the pruned model keeps what was promised of its outputs.

What is measured of the channels holds for any budget, so it is measured once. Then budgets are tried: each is spread, its
consumers are fitted, and the plan is carried out on a fresh graph, which runs on inputs that nothing was fitted on. What is lost
is more than the losses of the channels add up to, by a factor that hardly changes: two or three budgets are enough to come close.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toastc.calibration.data import fixed_batch
from toastc.calibration.labels import LABEL
from toastc.graphs.protocols import Graph
from toastc.plans.cost import Target, saved_macs
from toastc.plans.merges import UNREAD, Merge
from toastc.plans.plan import Plan
from toastc.plans.promises import Kept, Promise, classes
from toastc.system.errors import OutOfReach, ToastcError

from ..analyse.inputs import AT_ONCE, outputs_of, sliced
from ..shrink import Shrink
from ..state import Pass, State, run
from ..tokens.merge import merge_tokens
from .allocate import AllocateWidths, spread

APART = (16, 512)  # inputs that nothing is fitted on: a quarter of them, but so many
HELD = 1 << 28  # bytes of their outputs
ROUNDS = 5
FIRST = 0.15  # share of the MACs that goes first, where nothing is known of what that does
POWER = 1.5  # of the share that goes: what is lost grows with it
MORE = 1.7  # times what is expected is lost, before anything is known
FAR = 1.5  # times what may be lost
AIM = 0.97  # of what may be lost
NEAR = 0.01  # shares that need not be told apart

Seconds = dict[str, float]


def inputs_apart(graph: Graph, promise: Promise, count: int) -> int:
    """How many of so many inputs are kept apart to judge by."""
    room = HELD // max(1, sum(4 * int(np.prod(graph.shape(out))) // graph.batch for out in graph.outputs))
    found = min(max(count // 4, APART[0]), count // 2, APART[1], room)
    check_enough(promise, found, f"give {4 * promise.inputs}")
    return found


def check_enough(promise: Promise, inputs: int, instead: str) -> None:
    if inputs < promise.inputs:
        raise ToastcError(
            f"target: {promise}: {inputs} inputs to judge by can not show it, even if nothing is lost; {instead} inputs at least"
        )


@dataclass(frozen=True)
class Tried:
    """A budget that was carried out: the share of the MACs that went, and what that did."""

    state: State
    gone: float
    kept: Kept


class Judge:
    """Runs plans on inputs that nothing was fitted on, and the dense model once."""

    def __init__(self, promise: Promise, data: Any, fresh: Callable[[], Graph], merges: Sequence[Merge], first: Pass) -> None:
        self.promise, self.fresh, self.first = promise, fresh, first
        self.merges = [merge for merge in merges if merge != UNREAD]  # tokens that nobody reads change nothing
        graph = fresh()
        at_once = fixed_batch(graph.input_sizes()) or AT_ONCE
        self.feeds = [feed for batch in (data.labelled() if promise.kind.labels else data) for feed in sliced(batch, at_once)]
        self.labels = [feed.pop(LABEL, None) for feed in self.feeds]
        check_enough(promise, sum(len(next(iter(feed.values()))) for feed in self.feeds), f"give {promise.inputs}")
        self.dense = outputs_of(graph, self.feeds)
        if promise.kind.labels:
            data.labels.check(classes(self.dense[0]).shape[1])

    def __call__(self, plan: Plan) -> Kept:
        """What is lost where this plan is carried out."""
        graph = self.fresh()
        if self.merges:
            graph, _ = merge_tokens(graph, self.merges)
        if plan:
            state, _ = run([self.first], State(graph))
            graph = run([Shrink()], replace(state, plan=plan))[0].graph
        made = outputs_of(graph, self.feeds)
        terms = self.promise.kind.terms
        return self.promise.kept([terms(*each) for each in zip(self.dense, made, self.labels, strict=True)])


def keep_promise(state: State, passes: Sequence[Pass], judge: Judge, widths: int = 1) -> tuple[State, Seconds]:
    """The state with the smallest plan that keeps the promise, which may be an empty one; and the seconds of each pass."""
    until = next((n for n, step in enumerate(passes) if getattr(step, "spends", False)), None)
    if until is None:
        raise ToastcError(f"target: {judge.promise}: no pass of this recipe spends a budget")
    state, seconds = run(passes[:until], replace(state, target=Target("macs", 1 - FIRST)))
    return Budgets(state, passes[until:], judge, widths, seconds).best()


class Budgets:
    """That are tried, until the smallest is known that loses little enough."""

    def __init__(self, state: State, passes: Sequence[Pass], judge: Judge, widths: int, seconds: Seconds) -> None:
        self.state, self.passes, self.judge, self.widths, self.seconds = state, passes, judge, widths, seconds
        self.total = state.graph.totals()[0]
        allocate = next((p for p in passes if isinstance(p, AllocateWidths) and not p.uniform), None)
        self.offer = allocate.offer(state) if allocate is not None and state.losses else None
        self.most = 1.0  # share that can go at all
        self.helps = True  # is a plan better for what comes behind it?

    def best(self) -> tuple[State, Seconds]:
        promise = self.judge.promise
        good: list[Tried] = []
        bad: list[Tried] = []
        gone = self.begin()
        for n in range(ROUNDS):
            self.state.tell(f"keep {promise}", n / ROUNDS)
            tried = self.tried(min(gone, self.most - 1e-3), n)
            (good if tried.kept.holds else bad).append(tried)
            gone = self.next(good, bad)
            low, high = max((t.gone for t in good), default=0.0), min((t.gone for t in bad), default=1.0)
            if gone - low < NEAR or high - low < 2 * NEAR:
                break
        if good:
            return max(good, key=lambda t: t.gone).state, self.seconds
        return replace(self.state, plan=Plan(), kept=self.judge(Plan())), self.seconds

    def tried(self, gone: float, number: int) -> Tried:
        """Of the plans that the passes make of a budget, one after the other, the one that loses least: what is fitted to few
        inputs is not always better for it.
        """
        promise, tell = self.judge.promise, self.state.tell
        beside = lambda stage, done=0.0: tell(f"keep {promise}", (number + 0.9 * done) / ROUNDS)  # noqa: E731
        state = replace(self.state, target=Target("macs", 1 - gone), tell=beside)
        try:
            state = spread(state, self.passes, self.widths)
            return min(reversed(list(self.plans(state))), key=lambda t: t.kept.most)
        except OutOfReach as least:
            self.most = 1 - least.least
            return self.tried(self.most - 1e-3, number)

    def plans(self, state: State) -> Iterator[Tried]:
        """What comes behind the first plan makes it better, if there were inputs enough: where it did not, or where nothing will
        help, it is left out.
        """
        allowed, found = self.judge.promise.allowed, list[Tried]()
        for step in self.passes:
            if found and (not self.helps or found[-1].kept.most > FAR * allowed):
                break
            before = state.plan
            state, took = run([step], state)
            self.seconds[step.name] = self.seconds.get(step.name, 0.0) + took[step.name]
            if state.plan is not before:
                begun = time.perf_counter()
                kept, went = self.judge(state.plan), saved_macs(state.sites, state.plan) / self.total
                self.seconds["judge"] = self.seconds.get("judge", 0.0) + time.perf_counter() - begun
                found.append(Tried(replace(state, tell=self.state.tell, kept=kept), went, kept))
                yield found[-1]
        if len(found) > 1:
            self.helps = found[-1].kept.most <= found[0].kept.most

    def expected(self, gone: float) -> float:
        """How far outputs move, were errors to add up; where no losses are known a power of what goes tells as much."""
        if self.offer is None:
            return float(gone**POWER)
        try:
            return float(np.sqrt(self.offer.loss(Target("macs", 1 - gone))))
        except OutOfReach as least:
            self.most = 1 - least.least
            return float("inf")

    def where(self, wanted: float) -> float:
        """The share that can go until so much is expected."""
        low, high = 0.0, 1.0
        for _ in range(8):
            middle = (low + high) / 2
            low, high = (middle, high) if self.expected(middle) <= wanted else (low, middle)
        return (low + high) / 2

    def begin(self) -> float:
        if self.offer is None:
            return FIRST
        return self.where(self.judge.promise.allowed * self.judge.promise.kind.moves / MORE)

    def next(self, good: Sequence[Tried], bad: Sequence[Tried]) -> float:
        """Where all that may be lost would be, if it is more than expected by as much as in the nearest that is known."""
        low, high = max((t.gone for t in good), default=0.0), min((t.gone for t in bad), default=self.most)
        known = [t for t in (*good, *bad) if t.gone > 0 and t.kept.most > 0]
        if not known:
            return self.most
        allowed = AIM * self.judge.promise.allowed
        nearest = min(known, key=lambda t: abs(np.log(t.kept.most / allowed)))
        share = self.where(self.expected(nearest.gone) * allowed / nearest.kept.most)
        if not good and nearest.kept.most > FAR * allowed:  # what is expected may tell nothing
            share = min(share, high / FAR)
        return float(np.clip(share, low + 0.1 * (high - low), high - 0.1 * (high - low)))
