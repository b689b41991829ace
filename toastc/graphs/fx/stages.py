"""An fx graph in stretches: each runs from the values alive at one node to those alive at the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from ...system.vocabulary import Operand
from .. import Live, Stage, Value


def stages(gm: fx.GraphModule, cuts: Sequence[Value]) -> Iterator[Stage]:
    """One stage up to each cut in turn, and one to the outputs."""
    nodes = list(gm.graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    last = {node: max((place[user] for user in node.users), default=-1) for node in nodes}
    runner = fx.Interpreter(gm)

    def stage(start: int, end: int) -> Stage:
        def run(live: Live) -> Live:
            env: dict[Value, Operand] = dict(live)
            for node in nodes[start + 1 : end + 1]:
                if node.op == "placeholder":
                    continue
                args, kwargs = (fx.node.map_arg(part, env.__getitem__) for part in (node.args, node.kwargs))
                with torch.no_grad():
                    env[node] = getattr(runner, node.op)(node.target, args, kwargs)
            return {node: made for node, made in env.items() if last[node] > end or place[node] == end}

        return run

    start = -1
    for cut in cuts:
        yield stage(start, place[cut])
        start = place[cut]
    yield stage(start, len(nodes) - 2)  # the last node is the output
