"""score-weights: how much each channel weighs, from the weights alone.

A channel's vector is everything the coupling owns of it: its rows of q and k (with their biases), or its row of v
and its column of proj. `l1` and `l2` multiply the norms of both sides, since that is what reaches the other end;
`geometric-median` is ToaSt's score, the distance of the vector to the geometric median of its group's vectors,
by Weiszfeld's iteration, or coordinate-wise as the paper's code has it (`median=coordinate`). A channel that
contributes exactly nothing comes first under every score. `random` is what every score must beat.

`qk` says what a query-key channel's vector is: both sides joined (the paper's W_QK = [W_Q | W_K]), one of them alone, or
the mean of two scores, one of each side: the couplings of the paper's ablation.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from toastc.graphs.protocols import Reader
from toastc.plans.ratios import narrowed
from toastc.plans.sites import Coupling, Member, Site
from toastc.system.errors import ToastcError

from ..analyse.members import Weights
from ..state import State

WAYS = ("l1", "l2", "geometric-median", "random")
MEDIANS, QK = ("weiszfeld", "coordinate"), ("joint", "q", "k", "average")
DEAD = -1.0


@dataclass(frozen=True)
class ScoreWeights:
    """Score channels by the size of their weights: l1, l2 or distance to the geometric median."""

    by: str = "l2"
    median: str = "weiszfeld"
    of: str = ""  # "attention" or "ffn": only those
    qk: str = "joint"  # or "q", "k", "average"
    name = "score-weights"

    def __post_init__(self) -> None:
        known = {"by": WAYS, "median": MEDIANS, "of": ("", "attention", "ffn"), "qk": QK}
        for option, words in known.items():
            if getattr(self, option) not in words:
                raise ToastcError(
                    f"score-weights: {option}={getattr(self, option)}; it is one of {', '.join(filter(None, words))}"
                )

    def __call__(self, state: State) -> State:
        wanted = None if state.ratios is None else {name for name, _, _ in narrowed(state.ratios, state.sites)}
        scores = dict(state.scores)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # numpy lets go of the interpreter
            sites = [s for s in state.sites if self.of in ("", s.kind)]
            for found in pool.map(lambda site: self.score_site(state.graph, site, wanted, state.seed), sites):
                scores |= found
        return replace(state, scores=scores)

    def score_site(self, graph: Reader, site: Site, wanted: set[str] | None, seed: int) -> dict[str, np.ndarray]:
        weights = Weights(graph)
        scores = {}
        for coupling in site.every if wanted is not None else site.couplings:
            name = f"{site.name}.{coupling.name}"
            if coupling.name == "heads" or not coupling.prunable:
                continue
            if wanted is None or name in wanted or (f"{site.name}.heads" in wanted and coupling.name != "inputs"):
                if self.by == "random":
                    rng = np.random.default_rng([seed, *name.encode()])
                    scores[name] = rng.random((coupling.groups, coupling.width))
                else:
                    scores[name] = self.score(weights, coupling)
        if site.heads is not None and site.heads.prunable and f"{site.name}.vo" in scores:
            scores[f"{site.name}.heads"] = np.maximum(scores[f"{site.name}.vo"], 0).sum(axis=1)[None, :]
        return scores

    def score(self, weights: Weights, coupling: Coupling) -> np.ndarray:
        """Of all members together, or of one side of queries and keys, or of both sides and then their mean."""
        if coupling.name != "qk" or self.qk == "joint":
            return self.score_of(weights, coupling, [m for m in coupling.members if m.role != "aside"])
        sides = ("q", "k") if self.qk == "average" else (self.qk,)
        own = [self.score_of(weights, coupling, [m for m in coupling.members if m.role == side]) for side in sides]
        return np.asarray(np.mean(own, axis=0))

    def score_of(self, weights: Weights, coupling: Coupling, members: Sequence[Member]) -> np.ndarray:
        power = 1 if self.by == "l1" else 2
        sides: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((coupling.groups, coupling.width)))
        for member in members:
            sides[member.role] = sides[member.role] + weights.sizes(member, power)
        product = np.prod(list(sides.values()), axis=0) ** (1 / power)
        if self.by != "geometric-median":
            scores = product
        else:
            joined = np.concatenate([weights.vectors(m) for m in members], axis=2)
            scores = np.stack([distance_to_median(group, self.median) for group in joined])
        return np.where(product == 0, DEAD, scores)


def distance_to_median(rows: np.ndarray, how: str, steps: int = 50, tolerance: float = 1e-6) -> np.ndarray:
    """||row - median of rows||; the geometric median minimises the sum of those distances."""
    rows = rows.astype(np.float64)
    if how == "coordinate":
        center = np.sort(rows, axis=0)[(len(rows) - 1) // 2]  # the lower median, as torch.median
        return np.asarray(np.linalg.norm(rows - center, axis=1))
    center = rows.mean(axis=0)
    for _ in range(steps):
        distances = np.linalg.norm(rows - center, axis=1)
        weights = 1 / np.maximum(distances, 1e-12)
        moved = weights @ rows / weights.sum()
        if np.linalg.norm(moved - center) <= tolerance * max(float(np.linalg.norm(center)), 1e-12):
            break
        center = moved
    return np.asarray(np.linalg.norm(rows - center, axis=1))
