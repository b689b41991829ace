"""plan-tokens: how much of a budget in MACs is best saved by merging tokens, and how much by narrower channels.

What channels lose at every budget is known (`analyse-losses`, `measure-gains`, `allocate-widths`); what a merge loses is
measured: the graph is merged, run on calibration inputs, and its outputs are compared with the dense ones. Both are relative
errors of the outputs, squared, and small ones add up. Merges are taken one by one, the one that leaves the least in all, as long
as it helps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from toastc.graphs.protocols import Graph
from toastc.plans.cost import Target
from toastc.plans.merges import UNREAD, Merge
from toastc.system.errors import OutOfReach, ToastcError
from toastc.system.vocabulary import Array

from ..analyse.gains import size
from ..analyse.inputs import few, outputs_of
from ..state import State
from ..tokens.merge import merge_tokens
from .allocate import AllocateWidths

PLACES = 8  # blocks before which a merge is tried
SHARES = (0.1, 0.2, 0.3, 0.45)  # of all patches that go in bipartite merges, over all blocks
NEXT = 6  # the best single merges, which are tried as a second one
IMAGES = 64


def plan_tokens(state: State, fresh: Callable[[], Graph], keep: float) -> tuple[tuple[Merge, ...], str]:
    """The merges to begin with where `keep` of the dense graph's MACs stay. `state` knows losses and gains of channels."""
    if state.data is None:
        raise ToastcError("allow: merges are tried on calibration data; give data (--calibrate DATA)")
    trial = Trial(state, fresh, keep)
    best = trial.loss(())
    chosen: tuple[Merge, ...] = ()
    try:
        tried = candidates(state)
        singles = [(trial.loss((merge,), (n + 1) / len(tried)), n) for n, merge in enumerate(tried)]
    except ToastcError as error:
        return (UNREAD,), f"no tokens are merged: {error}"
    order = [tried[n] for _, n in sorted(singles)]
    if min(singles)[0] < best:
        best, chosen = min(singles)[0], (order[0],)
        while len(chosen) < 3:
            more = [m for m in order[:NEXT] if fits(m, chosen)]
            found = min(((trial.loss((*chosen, m)), n) for n, m in enumerate(more)), default=(float("inf"), 0))
            if found[0] >= best:
                break
            best, chosen = found[0], (*chosen, more[found[1]])
    without = trial.loss(())
    told = ", ".join(short(m) for m in chosen) or "no merge"
    return (*chosen, UNREAD), (
        f"tokens: {told}; expected error of the outputs {best**0.5:.3f}, by channels alone {without**0.5:.3f} "
        f"({trial.count} merges were tried on {trial.inputs} inputs)"
    )


def candidates(state: State) -> list[Merge]:
    """Columns and rows before blocks all along the model, and ToMe's merging in every block."""
    attention = [s for s in state.sites if s.kind == "attention"]
    blocks = np.unique(np.linspace(1, len(attention) - 1, min(PLACES, len(attention) - 1)).round().astype(int))
    found = [Merge(str(b), way) for b in blocks for way in ("horizontal", "vertical")]
    patches = max(s.tokens[1] for s in attention)
    counts = sorted({max(1, round(share * patches / len(attention))) for share in SHARES})
    return found + [Merge("*", "bipartite", "weighted", pairs=int(count)) for count in counts]


def fits(merge: Merge, chosen: Sequence[Merge]) -> bool:
    """Two of a kind, two before one block, or a grid behind a bipartite merge can not be had."""
    kinds = {m.merge for m in chosen}
    return merge.merge not in kinds and "bipartite" not in kinds and all(m.before != merge.before for m in chosen)


def short(merge: Merge) -> str:
    name = {"horizontal": "h", "vertical": "v", "bipartite": "t"}[merge.merge] + merge.before.replace("*", "")
    return name + (f":{merge.pairs}" if merge.pairs else "")


class Trial:
    """What is lost in all, tokens and channels, at a share of the MACs that stays."""

    def __init__(self, state: State, fresh: Callable[[], Graph], keep: float) -> None:
        self.state, self.fresh, self.keep = state, fresh, keep
        self.batches = few(state, IMAGES, IMAGES)
        self.inputs = sum(len(next(iter(b.values()))) for b in self.batches)
        dense = fresh()
        self.macs = dense.totals()[0]
        self.dense = self.outputs(dense)
        self.count = 0
        self.known: dict[tuple[Merge, ...], float] = {}
        self.channels = AllocateWidths().offer(state)

    def outputs(self, graph: Graph) -> list[list[np.ndarray]]:
        return outputs_of(graph, self.batches)

    def loss(self, merges: tuple[Merge, ...], done: float | None = None) -> float:
        if merges not in self.known:
            if done is not None:
                self.state.tell("plan-tokens", done)
            self.known[merges] = self.measured(merges)
        return self.known[merges]

    def measured(self, merges: tuple[Merge, ...]) -> float:
        if not merges:
            return self.of_channels(self.state.graph.totals()[0])
        self.count += 1
        graph, _ = merge_tokens(self.fresh(), (*merges, UNREAD))
        channels = self.of_channels(graph.totals()[0])
        return channels if np.isinf(channels) else channels + self.error(graph)

    def error(self, graph: Graph) -> float:
        made = self.outputs(graph)
        columns: list[Array] = [list(zip(*runs, strict=True)) for runs in (self.dense, made)]
        return sum(
            sum(size(a - b) for a, b in zip(dense, own, strict=True)) / (sum(map(size, dense)) + 1e-30)
            for dense, own in zip(*columns, strict=True)
        )

    def of_channels(self, left: int) -> float:
        """What channels lose that take `left` MACs down to the budget."""
        keep = self.keep * self.macs / left
        if keep >= 1:
            return 0.0
        try:
            return self.channels.loss(Target("macs", keep))
        except OutOfReach:
            return float("inf")
