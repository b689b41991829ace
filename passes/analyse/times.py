"""time-blocks: what every width of every site takes on this machine, for budgets in milliseconds.

Each shape of block is timed at a few widths, alone, and the whole model once, on the runtime and device that
calibration runs on, at the batch size of `batch` inputs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from toastc.graphs import Kind
from toastc.graphs.protocols import Runner
from toastc.plans.cost import Target
from toastc.plans.latency import Block, Times
from toastc.plans.plan import READERS
from toastc.plans.sites import Member, Site
from toastc.system.errors import ToastcError

from ..state import State, taken


@dataclass(frozen=True)
class TimeBlocks:
    """Time every attention and FFN at several widths, where the target is a latency."""

    batch: int = taken(1, "batch")
    fused: bool = taken(False, "fused")  # as the file will be deployed
    int8: bool = taken(False, "int8")
    name = "time-blocks"

    def __call__(self, state: State) -> State:
        if state.target is None or state.target.what != "latency":
            return state
        if state.data is None:
            raise ToastcError("target: latency needs calibration data, or recipe synthetic")
        feed = next(iter(state.data))
        feed = {k: np.concatenate([v] * self.batch)[: self.batch] for k, v in feed.items()}
        whole = self.whole(state.graph, feed)
        known: dict[Block, Times] = {}
        gains, gain = dict[Block, float](), 0.0
        times = {}
        for number, site in enumerate(state.sites):
            plain = block_of(state.graph, site, self.batch)
            block = replace(plain, fused=self.fused, int8=self.int8)
            state.tell(self.name, (number + 1) / len(state.sites))
            if block not in known:
                known[block] = Times.of(block, state.graph.stopwatch)
                gains[block] = state.graph.stopwatch(plain) - known[block]({}) if block != plain else 0.0
            times[site.name] = known[block]
            gain += gains[block]
        alone = sum(times[s.name]({}) for s in state.sites)
        note = f"latency: the model takes {whole:.2f} ms at batch {self.batch} on this machine, its blocks {alone:.2f} ms alone"
        if gain:
            note += f" as they will be deployed, {gain + alone:.2f} ms as they are"
        total = max(whole, alone + gain)
        keep = state.target.keep * total / (total - gain)
        if keep >= 1:
            note += "; no width has to go for that"
        target = Target("latency", min(keep, 1.0))
        return replace(state, times=times, total_time=total - gain, target=target, notes=(*state.notes, note))

    @staticmethod
    def whole(graph: Runner, feed: dict[str, np.ndarray], times: int = 7) -> float:
        probe = graph.probe([])
        found = []
        for _ in range(times + 2):
            start = time.perf_counter()
            probe(feed)
            found.append((time.perf_counter() - start) * 1e3)
        return float(np.median(found[2:]))


def block_of(graph: Runner, site: Site, batch: int) -> Block:
    """The sizes of a site: its widths, and of its linears the other side and how many tokens they take."""
    coupling = site.couplings[-1]  # vo, or hidden
    consumer = next(m for m in coupling.members if m.role == "out")
    makers = {m.operand: m for m in coupling.members if m.role not in READERS and is_matrix(m)}
    maker = next(iter(makers.values()))
    op = maker.operand[0]
    dim, wide = (graph.shape(op.inputs[1])[axis] for axis in op.weight_axes)
    end = consumer.operand[0]
    out = graph.shape(end.inputs[1])[end.weight_axes[1]]
    rows = max(1, op.macs // (dim * wide))
    if site.kind == "ffn":
        return Block(batch * rows, rows, dim, out, hidden=site.hidden, gated=len(makers) > 1 or wide == 2 * site.hidden)
    tokens = next((t for t in sorted(site.tokens, reverse=True) if t and rows % t == 0), rows)
    return Block(batch * rows, tokens, dim, out, site.head_count, site.head_dim, site.v_head_dim)


def is_matrix(member: Member) -> bool:
    op, slot = member.operand
    return op.kind is Kind.LINEAR and slot == 1
