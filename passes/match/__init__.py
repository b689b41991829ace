"""match: find every attention and FFN, and say why the others can not be shrunk."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toastc.graphs import Kind
from toastc.graphs.protocols import Reader
from toastc.plans.sites import Reject, Shared, Site
from toastc.system.errors import ToastcError

from ..state import State
from .attention import find_attention, refusals
from .couplings import Ledger
from .ffn import classes_of, find_ffn
from .names import unique
from .rules import walk

SPARE = ("", "first", "stages")
SPARED = "the first block stays whole"


@dataclass(frozen=True)
class MatchSites:
    """Find attention and FFN by pushing channel labels through the graph; `spare` the first block, or that of every stage."""

    spare: str = ""  # "first" or "stages"
    name = "match-sites"

    def __post_init__(self) -> None:
        if self.spare not in SPARE:
            raise ToastcError(f"match-sites: spare={self.spare}; it is first or stages")

    def __call__(self, state: State) -> State:
        ledger, sites, rejects = match(state.graph)
        return replace(state, matched=ledger, sites=spared(sites, self.spare), rejects=rejects)


def spared(sites: tuple[Site, ...], which: str) -> tuple[Site, ...]:
    """The sites, the first of each kind (of each stage: where the width of the stream changes) left whole."""
    if not which:
        return sites
    seen: set[tuple[str, int]] = set()
    found = []
    for site in sites:
        width = site.couplings[-1].channel_params  # of one channel: it follows the width of the residual stream
        stage = site.kind, width if which == "stages" else 0
        if stage not in seen:
            site = replace(site, couplings=tuple(map(kept_whole, site.couplings)), heads=kept_whole(site.heads),
                           inputs=kept_whole(site.inputs))  # fmt: skip
        seen.add(stage)
        found.append(site)
    return tuple(found)


def kept_whole(coupling: Any) -> Any:
    return coupling if coupling is None or coupling.reason else replace(coupling, reason=SPARED)


def with_own_inputs(ledger: Ledger, site: Site, taken: np.ndarray) -> Site:
    """The site; what it reads can not be left out there where it is cut as the channels of another: `taken`."""
    if site.inputs is None:
        return site
    given = ledger.flow.of(site.inputs.members[0].operand[0], 0)
    cut = given is not None and np.isin(ledger.root[given[given >= 0]], taken).any()
    return replace(site, inputs=None) if cut else site


def with_shared(graph: Reader, sites: tuple[Site, ...]) -> tuple[Site, ...]:
    """The sites, told which weights they share with those before them."""
    known: dict[Any, dict[tuple[str, int], int]] = {}  # of a weight: which couplings have which axis of it, how often
    found: dict[str, list[Shared]] = {site.name: [] for site in sites}
    for site in sites:
        for coupling in site.couplings:
            for member in coupling.members if coupling.prunable else ():
                op, slot = member.operand
                if op.kind is not Kind.LINEAR or slot != 1:
                    continue
                shape, own = graph.shape(op.inputs[1]), known.setdefault(member.operand, {})
                for (name, axis), count in own.items():
                    if axis != member.axes[0] and name != f"{site.name}.{coupling.name}":
                        pairs = shape[axis] * shape[member.axes[0]]
                        shared = Shared(coupling.name, name, count * op.macs // pairs, count * math.prod(shape) // pairs)
                        found[site.name].append(shared)
                key = f"{site.name}.{coupling.name}", member.axes[0]
                own[key] = own.get(key, 0) + 1
    return tuple(replace(site, shared=tuple(found[site.name])) for site in sites)


def match(graph: Reader) -> tuple[Ledger, tuple[Site, ...], tuple[Reject, ...]]:
    ledger = Ledger(walk(graph))
    every, rejected = find_attention(ledger)
    attention, whole = ([s for s in every if any(c.prunable for c in s.couplings) is cut] for cut in (True, False))
    ffn, more = find_ffn(ledger, classes_of(attention))
    order = {op: i for i, op in enumerate(graph.ops)}
    found = sorted(attention + ffn, key=lambda s: min(order[m.operand[0]] for c in s.couplings for m in c.members))
    names = unique([s.name for s in found], [s.kind for s in found])
    sites = tuple(replace(s, name=n) for s, n in zip(found, names, strict=True))
    taken = np.fromiter(classes_of(sites), np.int64)
    sites = with_shared(graph, tuple(with_own_inputs(ledger, s, taken) for s in sites))
    refused = [r for s in (*sites, *whole) if s.kind == "attention" for r in refusals(s)]
    return ledger, sites, tuple(refused + rejected + more)
