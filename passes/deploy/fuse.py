"""fuse-attention: every softmax(scale * QK' + mask) V that is spelt out becomes one node, whichever exporter wrote it.

The node takes its queries, keys and values as rows of tokens, [batch, tokens, heads * width]. Above the products they often
are just that, at some place of a wider tensor: the rearrangements in between are executed on positions, and where the result
says so they are not needed any more. Elsewhere they are turned back. What is multiplied onto the scores becomes the scale, what
is added the mask. An attention that does anything else keeps its nodes, and the reason is given.
"""

from __future__ import annotations

from dataclasses import dataclass

from toastc.graphs import Kind, Role
from toastc.graphs.protocols import Graph

from ..match.attention import is_softmax
from .recognise import Unfusable, recognise_attention, sees_something, through
from .write import Writer


@dataclass(frozen=True)
class Fused:
    """How many attentions are one node now, those that were so before included, and why others are not."""

    count: int
    left: tuple[str, ...]


def fuse_attention(graph: Graph) -> tuple[Graph, Fused]:
    graph = graph.without_idle_masks()
    whole = [op for op in graph.ops if op.kind is Kind.ATTENTION]
    fused, rewritten, left = 0, 0, list[str]()
    writer = Writer(graph)
    for op in graph.ops:
        for slot in (0, 1) if op.kind is Kind.PRODUCT else ():
            softmax, guarded = through(graph, op.inputs[slot])
            if softmax is None or not is_softmax(softmax):
                continue
            try:
                found = recognise_attention(graph, op, slot, softmax)
                if guarded and not all(sees_something(graph, added.value) for added in found.added):
                    raise Unfusable("it guards against tokens that see no other")
                writer.write(found)
                fused += 1
            except Unfusable as error:
                left.append(f"{op}: {error}")
    for op in whole:
        if Role.PLAIN_ATTENTION not in op.role:
            continue
        try:
            writer.write_whole(op)
            rewritten += 1
        except Unfusable as error:
            left.append(f"{op}: {error}")
    if fused or rewritten:
        graph.finish()
        graph = graph.reopened()
    return graph, Fused(len(whole) + fused, tuple(left))
