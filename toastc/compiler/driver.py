"""What both paths share: a request, tokens first, then the passes that choose the widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..calibration import Moments, Synthetic, open_data
from ..graphs.protocols import Graph
from ..passes.state import Pass, State, run
from ..plans.cost import Target, saved_macs, saved_params, uniform_ratios
from ..plans.merges import UNREAD, Merge
from ..plans.plan import Plan, check_plan
from ..plans.ratios import Ratios, narrowed
from ..plans.sites import Site
from ..plans.targets import PORTABLE, Deploy
from ..report import Report, Size
from ..report.data import coupling_rows, site_rows, token_rows
from ..report.evidence import curves, photo, surroundings
from ..system.errors import CannotShrink, NothingToPrune, ToastcError
from ..system.progress import Tell

HELD_OUT = 4  # batches that a search is judged by


@dataclass(frozen=True)
class Request:
    """What to do with a model: ratios, or a target, or a plan to replay."""

    ratios: Ratios | None = None
    target: Target | None = None
    plan: Plan | None = None
    recipe: str = "default"
    passes: tuple[Pass, ...] | None = None  # instead of the recipe's
    seed: int = 0
    verify: bool = True
    dry_run: bool = False
    data: Any = None  # what to calibrate on
    options: Mapping[str, Any] = field(default_factory=dict)  # of the data: limit, batch, preprocess
    moments: Moments | None = None
    keep_moments: bool = False  # they will be saved
    search: float | None = None  # minutes
    batch: int = 1  # of a latency
    provider: str = "cpu"  # where an ONNX model is watched
    tokens: tuple[Merge, ...] = ()
    deploy: Deploy = PORTABLE
    command: str = ""  # how it was asked for, in full
    allow: tuple[str, ...] | None = None  # what a target may be met by: channels, tokens; None: channels, and what is free

    @property
    def merges(self) -> tuple[Merge, ...]:
        if self.plan is not None:
            return self.plan.merges
        return (*(self.ratios.tokens if self.ratios is not None else ()), *self.tokens)


def allowed(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """`channels` or `channels,tokens`."""
    if given is None:
        return None
    words = tuple(w.strip() for w in given.split(",")) if isinstance(given, str) else tuple(given)
    if "channels" not in words or not set(words) <= {"channels", "tokens"}:
        raise ToastcError(f"allow: is channels, or channels,tokens; got {','.join(map(str, words))}")
    return words


def begun(graph: Graph, request: Request, macs: int, fresh: Callable[[], Graph], tell: Tell) -> tuple[State, Request]:
    """The graph with its tokens merged, and what is left to do: a budget in MACs is of the dense model's."""
    from ..passes.match import match
    from ..passes.tokens.merge import merge_tokens

    request, notes = with_tokens(request, graph, fresh, tell)
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
        if target.keep < left:
            target = Target("macs", target.keep / left)
        else:
            target, request = None, replace(request, ratios=Ratios())
        request = replace(request, target=target)
    return State(graph, request.ratios, notes=tuple(notes), merges=tuple(merged.steps), unmerged=unmerged), request


def with_tokens(request: Request, graph: Graph, fresh: Callable[[], Graph], tell: Tell) -> tuple[Request, list[str]]:
    """A budget in MACs may be met by tokens as well: by those nobody reads, which is free, or by all, if that is allowed."""
    steps = steps_of(request, graph)
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
    from ..passes.choose.budget import plan_tokens
    from ..passes.tokens.merge import merge_tokens

    base = merge_tokens(fresh(), (UNREAD,))[0]
    state, (first, *rest) = opened(State(base), request, tell)
    until = next(n for n, step in enumerate(rest) if step.name == "allocate-widths")
    state, _ = run(rest[:until], matched(first, state)[0])
    tell("plan-tokens")
    merges, note = plan_tokens(state, fresh, request.target.keep)
    moments = state.moments if merges == (UNREAD,) else request.moments
    return replace(request, tokens=merges, moments=moments), [note]


def steps_of(request: Request, graph: Graph) -> tuple[Pass, ...]:
    from ..passes import recipe, tuned

    data = request.data is not None or request.moments is not None
    fits = Synthetic.fits(graph.input_sizes())
    passes = request.passes or recipe(request.recipe, data, fits)
    steps: tuple[Pass, ...] = tuned(passes, request.search, request.batch, request.deploy)
    return steps


def opened(state: State, request: Request, tell: Tell) -> tuple[State, tuple[Pass, ...]]:
    """The passes of a request, and the state they begin with."""
    steps, inputs = steps_of(request, state.graph), state.graph.input_sizes()
    state = replace(state, held_out=0 if request.search is None else HELD_OUT)
    state = replace(state, seed=request.seed, moments=request.moments, target=request.target, tell=tell)
    if request.data is not None:
        state = replace(state, data=open_data(request.data, inputs, seed=request.seed, **request.options))
    return state, steps


def matched(first: Pass, state: State) -> tuple[State, dict[str, float]]:
    state, seconds = run([first], state)
    if not state.sites:
        why = f"; {state.rejects[0].node}: {state.rejects[0].reason}" if state.rejects else ""
        raise NothingToPrune(f"no attention and no FFN was found that can be shrunk{why}")
    return state, seconds


def choose(state: State, request: Request, total: int, tell: Tell) -> tuple[State, dict[str, float]]:
    """The plan, before anything is cut."""
    state, seconds = chosen(state, request, total, tell)
    if request.keep_moments and state.moments is None:
        raise ToastcError(f"moments-out: recipe {request.recipe} measures nothing here that could be saved")
    return state, seconds


def chosen(state: State, request: Request, total: int, tell: Tell) -> tuple[State, dict[str, float]]:
    """Run matching, scoring and planning; or matching alone where a plan is given."""
    state, (first, *rest) = opened(state, request, tell)
    state, seconds = matched(first, state)
    if request.plan is not None:
        check_plan(request.plan, state.sites)
        return replace(state, plan=request.plan), seconds
    if request.ratios is not None and not narrowed(request.ratios, state.sites):
        return replace(state, plan=Plan(merges=request.merges)), seconds
    if request.target is not None and not any(step.name == "allocate-widths" for step in rest):
        selects = any(step.name == "plan-selections" for step in rest)
        ratios = uniform_ratios(state.sites, total, request.target, max(8, request.deploy.widths), chosen=selects)
        state = replace(state, ratios=ratios)
    state, took = run(rest, state)
    return replace(state, plan=replace(state.plan, merges=request.merges)), seconds | took


def planned(
    name: str, request: Request, state: State, before: Size, seconds: Mapping[str, float], called: Sequence[Site]
) -> Report:
    """What there is to say before anything is cut; the bytes are not known yet, and nothing is proven. Kernels are told of
    attentions that are `called` as one."""
    sites, plan = state.sites, state.plan
    macs = state.graph.totals()[0] - saved_macs(sites, plan)
    after = Size(macs, before.params - saved_params(sites, plan), None)
    settings = {"command": request.command, "seed": request.seed, "recipe": request.recipe, **surroundings()}
    return Report(
        name, request.recipe, before, after, coupling_rows(sites, plan), state.rejects, seconds, notes=state.notes,
        settings=settings, kernels=kernels_of(state.graph, called, plan), sites=site_rows(sites, plan, state.unmerged),
        tokens=token_rows(state.merges), curves=curves(state), photo=photo(state.data) if state.merges else None,
    )  # fmt: skip


def kernels_of(graph: Graph, sites: Sequence[Site], plan: Plan) -> tuple[dict[str, object], ...]:
    """Which kernels the attentions get, before and after."""
    from ..passes.deploy.attentions import attentions
    from ..timing.kernels import table

    return tuple(table(attentions(graph, sites), attentions(graph, sites, plan), graph.totals()[0]))
