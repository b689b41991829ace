"""What is chosen at run time, written into the graph; and the same in the dense graph, to prove it by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from toastc.graphs import Dim, Guide, Kind, Op, Value
from toastc.graphs.protocols import Builder, Editor, Reader
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


def guide_of(graph: Reader, attention: Site | None, name: str) -> Guide:
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


def write_selections(graph: Editor, sites: Sequence[Site], plan: Plan) -> None:
    attended: dict[Op, Value] = {}
    for name, site, coupling, choice, attention in selected(sites, plan):
        guide = guide_of(graph, attention, name) if choice.guided else None
        for number, op in enumerate(readers(coupling)):
            chosen = select(graph, op, choice, guide, attended, label(name, number))
            if choice.masks and not number:
                mask(graph, *residual_of(graph, site), chosen)


def hold_selections(graph: Editor, sites: Sequence[Site], plan: Plan) -> list[str]:
    """The dense graph with the channels zeroed that the names among its new inputs say were not chosen."""
    names = []
    for name, site, coupling, choice, _ in selected(sites, plan):
        for number, op in enumerate(readers(coupling)):
            names.append(label(name, number))
            chosen = graph.add_input(names[-1], choice.width)
            mask(graph, op, 0, chosen)
            if choice.masks and not number:
                mask(graph, *residual_of(graph, site), chosen)
    return names


def take(graph: Editor, ops: Sequence[Op], index: np.ndarray) -> None:
    """Linears of one input read these channels of it."""
    first = ops[0]
    read = graph.builder(first, first.inputs[0]).take(graph.operand(first, 0), index, -1)
    for op in ops:
        graph.redirect(op, 0, read)


# ---- channels chosen at run time ------------------------------------------------------------------------------------------
#
#   x [B, N, C] -> the sampled tokens -> |x|, weighted by the class token's attention -> mean -> the largest -> which
#   image:  x[b, n, which[b]]  [B, N, k]  @  W[which]  [B, k, out]
#   batch:  x[b, n, which]     [B, N, k]  @  W[which]  [k, out]


def select(graph: Editor, op: Op, choice: Select, guide: Guide | None, attended: dict[Op, Value], name: str) -> Value:
    """A linear reads what is chosen; returns which: [images or 1, count], the channel with the highest score first."""
    shape, builder = graph.shape(op.inputs[0]), graph.builder(op, op.inputs[0])
    if len(shape) < 3:
        raise CannotShrink(f"{op}: the tokens of all images stand on one axis; which image they are of can not be told")
    x, weight, into = graph.operand(op, 0), graph.operand(op, 1), op.weight_axes[0]
    flat = x if len(shape) == 3 else builder.reshape(x, [Dim(0), -1, shape[-1]])
    which = ranked(graph, builder, flat, choice, guide, attended)
    builder.name(which, name)
    if choice.per == "batch":
        own = builder.take(which, np.array(0), 0)
        read, rows = builder.gather(x, own, -1), builder.gather(weight, own, into)
        made = builder.matmul(read, rows if into == 0 else builder.transpose(rows, [1, 0]))
    else:
        read = builder.gather_channels(flat, which)
        rows = weight if into == 0 else builder.transpose(weight, [1, 0])
        made = builder.matmul(read, builder.gather_rows(rows, which))
        if len(shape) > 3:
            made = builder.reshape(made, [*(Dim(axis, x) for axis in range(len(shape) - 1)), -1])
    if len(op.inputs) > 2 and op.inputs[2] is not None:
        made = builder.add(made, graph.operand(op, 2))
    graph.replace(op.outputs[0], made)
    return which


def ranked(graph: Editor, builder: Builder, x: Value, choice: Select, guide: Guide | None, attended: dict[Op, Value]) -> Value:
    """[images or 1, count]: positions of the channels with the highest scores."""
    tokens = choice.tokens.astype(np.int64)
    size = builder.abs(builder.take(x, tokens, 1))
    if guide is not None:
        column = builder.unsqueeze(builder.take(attention_of(graph, guide, attended), tokens, 1), 2)
        own, rest = builder.abs(builder.take(x, np.array(0), 1)), builder.mean(builder.mul(size, column), 1)
        score = builder.add(*(builder.mul(part, np.array(w)) for part, w in zip((own, rest), choice.weights, strict=True)))
    else:
        score = builder.mean(size, 1)
    if choice.per == "batch":
        score = builder.mean(score, 0, keep=True)
    return builder.topk(score, choice.width, -1)[1]


def attention_of(graph: Editor, guide: Guide, attended: dict[Op, Value]) -> Value:
    """[B, N]: how much the class token attends to every token, the mean over heads."""
    op = guide.op
    if op not in attended:
        builder = graph.builder(op, op.inputs[0])
        if guide.slot >= 0:
            row = builder.take(graph.operand(op, guide.slot), np.array(0), 2)
        else:
            row = recomputed(graph, builder, op)
        attended[op] = builder.mean(row, 1)
    return attended[op]


def recomputed(graph: Editor, builder: Builder, op: Op) -> Value:
    """[B, H, N]: the class token's row of softmax(q k'), which a whole attention keeps to itself."""
    spec = op.attention
    assert spec is not None and spec.heads == spec.kv_heads  # as a guide is chosen
    sides = []
    for slot in (0, 1):
        value, layout = graph.operand(op, slot), spec.layouts[slot]
        if layout == "bn(hd)":
            value = builder.reshape(value, [Dim(0), Dim(1), spec.heads, -1])
        sides.append(value if layout == "bhnd" else builder.transpose(value, [0, 2, 1, 3]))
    first = builder.take(sides[0], np.array([0]), 2)
    scores = builder.mul(builder.matmul(first, builder.transpose(sides[1], [0, 1, 3, 2])), np.array(spec.scale))
    return builder.take(builder.softmax(scores), np.array(0), 2)


def mask(graph: Editor, op: Op, slot: int, chosen: Value) -> None:
    """Zeroes the channels of an operand that are not chosen."""
    builder, shape = graph.builder(op, op.inputs[slot]), graph.shape(op.inputs[slot])
    flags = builder.one_hot(chosen, shape[-1])
    for _ in range(len(shape) - 2):
        flags = builder.unsqueeze(flags, 1)
    graph.redirect(op, slot, builder.mul(graph.operand(op, slot), builder.cast(flags)))


def label(name: str, number: int) -> str:
    return f"toastc_chosen/{name}/{number}"


def residual_of(graph: Reader, site: Site) -> tuple[Op, int]:
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
