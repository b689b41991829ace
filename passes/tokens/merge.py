"""merge-tokens: neighbouring tokens of the grid become one, before the blocks that the merges name (CAIT's ATME).

The stream behind `before` is half as wide: every pair is averaged, attention counts a merged token by the log of its size, and
where the sequence is put back into a grid (a dense head), or is an output, every patch gets the token it has become part of.
Weights stay what they were; the rest of a compile sees a graph with fewer tokens. Here is where in the model merges stand;
`merging` writes them into the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from toastc.graphs import Value
from toastc.graphs.protocols import Graph, Reader
from toastc.plans.merges import Layout, Merge
from toastc.plans.sites import Site
from toastc.system.errors import ToastcError

from ..match import match
from ..shrink.selections import residual_of
from .layout import grid_of, leading_tokens
from .unread import drop_unread
from .write import Merged, Merging, Step


def merge_tokens(graph: Graph, merges: Sequence[Merge], held: bool = False) -> tuple[Graph, Merged]:
    """The graph with its tokens merged, looked at afresh. `held`: what is chosen at run time becomes an input instead."""
    graph = graph.without_idle_masks()
    known = [m for m in merges if m.merge != "unread"]
    graph, merged = write_merges(graph, known, held) if known else (graph, Merged([], [], []))
    if len(known) < len(merges) and not held:  # the dense graph of a proof keeps them: its outputs must be the same
        graph, note = drop_unread(graph)
        merged.notes.extend([note] if note else [])
    return graph, merged


def write_merges(graph: Graph, merges: Sequence[Merge], held: bool) -> tuple[Graph, Merged]:
    sites = match(graph)[1]
    starts = sorted(places(graph, sites, merges), key=lambda start: graph.position(start[0]))
    layout = first_layout(graph, starts[0][0])
    steps: list[Step] = []
    for value, merge, attention in starts:
        if graph.shape(value)[1] != graph.shape(starts[0][0])[1]:
            raise ToastcError(f"tokens: before {merge.before} stands another sequence than before {starts[0][1].before}")
        if any(value is step.value for step in steps):
            raise ToastcError(f"tokens: two merges stand before the same block ({merge.before}); put the second one block later")
        before, pairs = layout, None
        if merge.pairs is None:
            layout, pairs = before.merged(merge)
        else:
            layout = before.after_pairs(merge)
        steps.append(Step(value, merge, before, layout, pairs, attention))
    return Merging(graph, steps, held).written()


def places(graph: Reader, sites: Sequence[Site], merges: Sequence[Merge]) -> Iterator[tuple[Value, Merge, Site | None]]:
    """Where merges are written: before an attention, or, if they look at its keys, behind it."""
    for merge in merges:
        if merge.merge != "bipartite":
            yield stream_before(graph, sites, merge), merge, None
            continue
        attention = [s for s in sites if s.kind == "attention"]
        grid = [attention.index(named(attention, m)) for m in merges if m.merge != "bipartite"]
        count = 0
        for site in attention[max(grid, default=0) :] if merge.before == "*" else [named(attention, merge)]:
            behind = [s for s in sites[sites.index(site) + 1 :] if s.kind in ("ffn", "attention")]
            if not behind or behind[0].kind != "ffn":
                raise ToastcError(f"tokens: no FFN stands behind {site.name}; a bipartite merge goes between the two")
            stream = stream_into(graph, behind[0], merge)
            count = count or graph.shape(stream)[1]
            if graph.shape(stream)[1] != count:  # CaiT's last blocks work on the class token alone
                continue
            if site.tokens[1] != count:
                raise ToastcError(
                    f"tokens: {site.name} has {site.tokens[1]} keys to {count} tokens; there is not one to compare each by"
                )
            yield stream, merge, site


def named(attention: Sequence[Site], merge: Merge) -> Site:
    if merge.before.isdigit():
        found = attention[int(merge.before)] if int(merge.before) < len(attention) else None
    else:
        found = next((s for s in attention if f"{s.name}.".startswith(f"{merge.before}.")), None)
    if found is None:
        known = ", ".join(s.name for s in attention[:3])
        raise ToastcError(f"tokens: no attention stands in {merge.before}; there are {len(attention)}: {known}, ...")
    return found


def stream_before(graph: Reader, sites: Sequence[Site], merge: Merge) -> Value:
    """The residual stream that the attention of a block reads."""
    return stream_into(graph, named([s for s in sites if s.kind == "attention"], merge), merge)


def stream_into(graph: Reader, site: Site, merge: Merge) -> Value:
    op, slot = residual_of(graph, site)
    value = op.inputs[slot]
    if value is None or len(graph.shape(value)) != 3 or graph.producer(value) is None:
        raise ToastcError(f"tokens: before {merge.before} there is no stream of tokens that could be merged")
    return value


def first_layout(graph: Reader, value: Value) -> Layout:
    count, leading = graph.shape(value)[1], leading_tokens(graph, value)
    if graph.varies(value)[1]:
        raise ToastcError("tokens: how many there are is only known at run time; export the model for one size of images")
    height, width = grid_of(graph, count - leading)
    return Layout.whole(leading, height, width)
