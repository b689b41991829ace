"""From a dense graph to a plan: tokens first, then the passes that choose the widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ..calibration import Workers, open_data
from ..graphs.protocols import Graph
from ..passes import Judge, inputs_apart, inputs_to_keep, keep_promise, merge_tokens, plan_tokens, spread
from ..passes.match import match
from ..passes.state import Pass, State, costs, run
from ..plans.cost import Target
from ..plans.merges import UNREAD
from ..plans.plan import Plan, check_plan
from ..plans.promises import Kept
from ..plans.ratios import Ratios, narrowed
from ..system.errors import CannotShrink, NothingToPrune, ToastcError
from ..system.progress import Tell, expect
from .request import Request

Seconds = dict[str, float]
JUDGED = 2048  # images of a folder with labels
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
    spreads = any(step.name == "allocate-widths" and not getattr(step, "uniform", False) for step in steps)
    ask = request.allow is not None and "tokens" in request.allow
    if request.promise is None and (request.target is None or request.target.what != "macs" or not spreads):
        if ask:
            raise ToastcError("allow: tokens go with a target in macs and a recipe that allocates widths (default, synthetic)")
        return request, []
    if ask and request.merges:
        raise ToastcError("allow: tokens are merged as given, or as the budget wants; not both")
    if ask and request.target is None:
        raise ToastcError(f"allow: tokens go with a target in macs, not with {request.promise}")
    if not ask or request.target is None:
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
    state = replace(
        state, moments=request.moments, given_moments=request.moments is not None, seed=options.seed,
        target=request.target, tell=tell, workers=options.workers or Workers(),
    )  # fmt: skip
    if options.data is not None:
        data = open_data(
            options.data, inputs, seed=options.seed, limit=options.images, preprocess=request.preprocess, labels=request.labels
        )
        state = set_apart(replace(state, data=data), request, steps)
    elif request.moments is not None and request.moments.inputs:  # some of the data came along
        state = replace(state, data=open_data(request.moments.batches(), inputs))
    return state, steps


def set_apart(state: State, request: Request, steps: Sequence[Pass]) -> State:
    """Some of the data is kept to judge by, where there is something to judge."""
    promise, options = request.promise, request.options
    if promise is not None and request.labelled is not None:
        folder, labels = request.labelled
        inputs = state.graph.input_sizes()
        data = open_data(folder, inputs, seed=options.seed, limit=JUDGED, preprocess=request.preprocess, labels=labels)
        return replace(state, apart=data)
    wanted = max((getattr(step, "apart", 0) for step in steps), default=0)
    if promise is None and not wanted:
        return state
    count = state.data.counted()
    if count < 2:
        raise ToastcError("calibrate: one input is too few to keep some apart, to judge by; give more")
    apart, rest = state.data.divided(min(wanted, count // 2) if promise is None else inputs_apart(state.graph, promise, count))
    return replace(state, apart=apart, data=rest)


def find_sites(first: Pass, state: State) -> tuple[State, Seconds]:
    state, seconds = run([first], state)
    if not state.sites:
        why = f"; {state.rejects[0].node}: {state.rejects[0].reason}" if state.rejects else ""
        raise NothingToPrune(f"no attention and no FFN was found that can be shrunk{why}")
    return state, seconds


def choose_widths(state: State, request: Request, fresh: Callable[[], Graph], tell: Tell) -> tuple[State, Seconds]:
    """The plan, before anything is cut: by matching, scoring and planning, or by matching alone where a plan is given."""
    state, seconds = choose_plan(state, request, fresh, tell)
    if request.options.moments_out is not None and state.moments is None:
        raise ToastcError(f"moments-out: recipe {request.recipe} measures nothing here that could be saved")
    if request.options.moments_out is not None and state.data is not None and state.moments is not None:
        state.moments.inputs = inputs_to_keep(state)
    return state, seconds


def choose_plan(state: State, request: Request, fresh: Callable[[], Graph], tell: Tell) -> tuple[State, Seconds]:
    state, (first, *rest) = start_state(state, request, tell)
    state, seconds = find_sites(first, state)
    if request.plan is not None:
        check_plan(request.plan, state.sites)
        return replace(state, plan=request.plan), seconds
    if request.ratios is not None and not narrowed(request.ratios, state.sites):
        return replace(state, plan=Plan(merges=request.merges)), seconds
    expect(state.tell, costs(rest, state) | PROVING)
    if request.promise is not None:
        judge = Judge(request.promise, state.apart, fresh, request.merges, first)
        state, took = keep_promise(state, rest, judge, request.deploy.widths)
        assert state.kept is not None
        state = replace(state, notes=(*state.notes, *told(state.kept, state.plan, request)))
    else:
        state, took = run(rest, spread(state, rest, request.deploy.widths))
    return replace(state, plan=replace(state.plan, merges=request.merges)), seconds | took


def told(kept: Kept, plan: Plan, request: Request) -> Iterator[str]:
    """What became of a promise."""
    if not plan:
        yield f"target: nothing can be cut within {kept.promise}"
    else:
        yield f"target: {kept.promise} is kept: {kept}, which nothing was fitted on"
    if request.deploy.dtype or request.deploy.quantize:
        yield f"target: {kept.promise} is promised of the pruned model, before it gets other numbers"
