"""What is chosen at run time, written into the graph; and the same in the dense graph, to prove it by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from toastc.graphs import Graph, Guide, Kind, Op, Selection, Value
from toastc.plans.plan import Keep, Plan, Select
from toastc.plans.sites import Coupling, Site
from toastc.system.errors import CannotShrink


def readers(coupling: Coupling) -> list[Op]:
    """The linears that take a coupling's channels."""
    return list(dict.fromkeys(m.operand[0] for m in coupling.members if m.role == "out"))


def taken(sites: Sequence[Site], plan: Plan) -> Iterator[tuple[Coupling, Keep]]:
    """Inputs that are left out for good."""
    for site in sites:
        choice = plan.get(site.name, "inputs")
        if site.inputs is not None and isinstance(choice, Keep):
            yield site.inputs, choice


def selected(sites: Sequence[Site], plan: Plan) -> Iterator[tuple[str, Site, Coupling, Select, Site | None]]:
    """What is chosen at run time, with the attention that stands before it."""
    before = None
    for site in sites:
        if site.kind == "attention":
            before = site
        for coupling in site.every:
            choice = plan.get(site.name, coupling.name)
            if isinstance(choice, Select):
                yield f"{site.name}.{coupling.name}", site, coupling, choice, before


def guide_of(graph: Graph, attention: Site | None, name: str) -> Guide:
    """Where the class token's row of the attention can be read."""
    if attention is None:
        raise CannotShrink(f"{name}: no attention stands before it whose class token could guide the choice")
    wiring = attention.wiring
    slot: int = wiring.scores_at
    op: Op = wiring.mix
    shared = op.attention is not None and op.attention.heads != op.attention.kv_heads
    if shared or (slot >= 0 and len(graph.shape(op.inputs[slot])) != 4):
        raise CannotShrink(f"{name}: {op} does not keep images and heads apart; the class token's attention can not be read")
    return Guide(op, slot)


def write_selections(graph: Graph, sites: Sequence[Site], plan: Plan) -> None:
    for name, site, coupling, choice, attention in selected(sites, plan):
        guide = guide_of(graph, attention, name) if choice.guided else None
        tokens = tuple(int(t) for t in choice.tokens)
        for number, op in enumerate(readers(coupling)):
            chosen = graph.select(op, Selection(label(name, number), choice.width, choice.per, tokens, choice.weights, guide))
            if choice.masks and not number:
                graph.mask(*residual_of(graph, site), chosen)


def hold_selections(graph: Graph, sites: Sequence[Site], plan: Plan) -> list[str]:
    """The dense graph with the channels zeroed that the names among its new inputs say were not chosen."""
    names = []
    for name, site, coupling, choice, _ in selected(sites, plan):
        for number, op in enumerate(readers(coupling)):
            names.append(label(name, number))
            chosen = graph.chosen(names[-1], choice.width)
            graph.mask(op, 0, chosen)
            if choice.masks and not number:
                graph.mask(*residual_of(graph, site), chosen)
    return names


def label(name: str, number: int) -> str:
    return f"toastc_chosen/{name}/{number}"


def residual_of(graph: Graph, site: Site) -> tuple[Op, int]:
    """The sum behind an attention or an FFN, and the slot of what it is added to."""
    made = readers(site.couplings[-1])
    value: Value = made[0].outputs[0] if made else None
    while value is not None:
        users = graph.users(value)
        if len(users) != 1:
            break
        op, slot = users[0]
        others = [i for i, v in enumerate(op.inputs) if i != slot and v is not None and not graph.is_constant(v)]
        if op.kind is Kind.ELEMENTWISE and len(others) == 1:
            return op, others[0]
        if op.kind not in (Kind.ELEMENTWISE, Kind.SHAPE) or others or op.outputs[0] is None:
            break
        value = op.outputs[0]
    raise CannotShrink(f"{site.name}: the residual stream behind it was not found")
