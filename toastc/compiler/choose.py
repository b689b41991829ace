"""From a dense graph to a plan: tokens first, then the passes that choose the widths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..calibration import Workers, open_data
from ..graphs.protocols import Graph
from ..passes import inputs_to_keep, merge_tokens, plan_tokens
from ..passes.match import match
from ..passes.state import Pass, State, costs, run
from ..plans.cost import Target, uniform_ratios
from ..plans.merges import UNREAD
from ..plans.plan import Plan, check_plan
from ..plans.ratios import Ratios, narrowed
from ..system.errors import CannotShrink, NothingToPrune, ToastcError
from ..system.progress import Tell, expect
from .request import Request

Seconds = dict[str, float]
PROVING = {"write": 1.0, "verify": 6.0}  # runs of the model on one input, more or less


def apply_merges(graph: Graph, request: Request, macs: int, fresh: Callable[[], Graph], tell: Tell) -> tuple[State, Request]:
    """The graph with its tokens merged, and what is left to do: a budget in MACs is of the dense model's."""
    request, notes = tokens_for_target(request, graph, fresh, tell)
    if not request.merges or not macs:  # where nothing is counted nothing will be found
        return State(graph, request.ratios, notes=tuple(notes)), request
    free = request.tokens == (UNREAD,) and request.allow is None
    unmerged = {site.name: site.macs for site in match(graph)[1]}
    try:
        graph, merged = merge_tokens(graph, request.merges)
    except CannotShrink:
        if not free:
            raise
        graph, request = fresh(), replace(request, tokens=())
        return State(graph, request.ratios), request
    left = graph.totals()[0] / macs
    if free and left == 1:
        return State(graph, request.ratios), replace(request, tokens=())
    notes += [*merged.notes, f"merged tokens leave {left:.3f} of the MACs"]
    target = request.target
    if target is not None and target.what == "latency":
        raise ToastcError("target: latency is not told with merged tokens; give macs or params")
    if target is not None and target.what == "macs":
        met = target.keep >= left
        request = request.with_ratios(Ratios()) if met else replace(request, target=Target("macs", target.keep / left))
    return State(graph, request.ratios, notes=tuple(notes), merges=tuple(merged.steps), unmerged=unmerged), request


def tokens_for_target(request: Request, graph: Graph, fresh: Callable[[], Graph], tell: Tell) -> tuple[Request, list[str]]:
    """A budget in MACs may be met by tokens as well: by those nobody reads, which is free, or by all, if that is allowed."""
    steps = request.steps(graph)
    spread = any(step.name == "allocate-widths" and not getattr(step, "uniform", False) for step in steps)
    ask = request.allow is not None and "tokens" in request.allow
    if request.target is None or request.target.what != "macs" or not spread:
        if ask:
            raise ToastcError("allow: tokens go with a target in macs and a recipe that allocates widths (default, synthetic)")
        return request, []
    if ask and request.merges:
        raise ToastcError("allow: tokens are merged as given, or as the budget wants; not both")
    if not ask:
        free = request.allow is None and not request.merges
        return (replace(request, tokens=(UNREAD,)) if free else request), []
    base = merge_tokens(fresh(), (UNREAD,))[0]
    state, (first, *rest) = start_state(State(base), request, tell)
    until = next(n for n, step in enumerate(rest) if step.name == "allocate-widths")
    state, _ = run(rest[:until], find_sites(first, state)[0])
    tell("plan-tokens")
    merges, note = plan_tokens(state, fresh, request.target.keep)
    moments = state.moments if merges == (UNREAD,) else request.moments
    return replace(request, tokens=merges, moments=moments), [note]


def start_state(state: State, request: Request, tell: Tell) -> tuple[State, tuple[Pass, ...]]:
    """The passes of a request, and the state they begin with."""
    steps, inputs, options = request.steps(state.graph), state.graph.input_sizes(), request.options
    held_out = max((getattr(step, "held_out", 0) for step in steps), default=0)
    state = replace(
        state, held_out=held_out, moments=request.moments, given_moments=request.moments is not None, seed=options.seed,
        target=request.target, tell=tell, workers=options.workers or Workers(),
    )  # fmt: skip
    if options.data is not None:
        data = open_data(options.data, inputs, seed=options.seed, limit=options.images, preprocess=request.preprocess)
        state = replace(state, data=data)
    elif request.moments is not None and request.moments.inputs:  # some of the data came along
        state = replace(state, data=open_data(request.moments.batches(), inputs))
    return state, steps


def find_sites(first: Pass, state: State) -> tuple[State, Seconds]:
    state, seconds = run([first], state)
    if not state.sites:
        why = f"; {state.rejects[0].node}: {state.rejects[0].reason}" if state.rejects else ""
        raise NothingToPrune(f"no attention and no FFN was found that can be shrunk{why}")
    return state, seconds


def choose_widths(state: State, request: Request, total: int, tell: Tell) -> tuple[State, Seconds]:
    """The plan, before anything is cut: by matching, scoring and planning, or by matching alone where a plan is given."""
    state, seconds = choose_plan(state, request, total, tell)
    if request.options.moments_out is not None and state.moments is None:
        raise ToastcError(f"moments-out: recipe {request.recipe} measures nothing here that could be saved")
    if request.options.moments_out is not None and state.data is not None and state.moments is not None:
        state.moments.inputs = inputs_to_keep(state)
    return state, seconds


def choose_plan(state: State, request: Request, total: int, tell: Tell) -> tuple[State, Seconds]:
    state, (first, *rest) = start_state(state, request, tell)
    state, seconds = find_sites(first, state)
    if request.plan is not None:
        check_plan(request.plan, state.sites)
        return replace(state, plan=request.plan), seconds
    if request.ratios is not None and not narrowed(request.ratios, state.sites):
        return replace(state, plan=Plan(merges=request.merges)), seconds
    if request.target is not None and not any(step.name == "allocate-widths" for step in rest):
        selects = any(step.name == "plan-selections" for step in rest)
        ratios = uniform_ratios(state.sites, total, request.target, max(8, request.deploy.widths), chosen=selects)
        state = replace(state, ratios=ratios)
    expect(state.tell, costs(rest, state) | PROVING)
    state, took = run(rest, state)
    return replace(state, plan=replace(state.plan, merges=request.merges)), seconds | took
