"""score-moments: how much each channel does on calibration data.

    energy           E[x^2]             CORP's rank
    magnitude        E|x|               ToaSt's token channel selection, over all tokens
    variance         Var(x)             VBP's rank: what is constant can be moved into a bias
    variance-norm    Var(x) |w|^2       the same, by how much of it the consumer takes

x is what the consumer takes; for q and k the two sides are multiplied, keys less their mean over the tokens. Channels
that could not be watched are scored by the size of their weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from toastc.calibration.moments import Sums
from toastc.plans.ratios import narrowed
from toastc.plans.sites import Coupling, Site
from toastc.system.errors import ToastcError

from ..analyse.losses import columns, of_products
from ..analyse.members import Weights
from ..state import State
from .weights import ScoreWeights

MEASURES: dict[str, Callable[[Sums], np.ndarray]] = {
    "energy": lambda sums: sums.squares / sums.count,
    "magnitude": lambda sums: sums.absolute / sums.count,
    "variance": lambda sums: np.maximum(sums.squares / sums.count - sums.mean**2, 0),
}
MEASURES["variance-norm"] = MEASURES["variance"]
KINDS = ("", "attention", "ffn")


@dataclass(frozen=True)
class ScoreMoments:
    """Score channels by what they do on calibration data: energy, magnitude, variance or variance-norm."""

    by: str = "variance-norm"
    of: str = ""  # "attention" or "ffn": only those
    name = "score-moments"

    def __post_init__(self) -> None:
        if self.by not in MEASURES or self.of not in KINDS:
            raise ToastcError(
                f"score-moments: by={self.by}, of={self.of}; by is one of {', '.join(MEASURES)}, of attention or ffn"
            )

    def __call__(self, state: State) -> State:
        if state.moments is None:
            raise ToastcError("score-moments: collect-moments must run before it")
        wanted = None if state.ratios is None else {name for name, _, _ in narrowed(state.ratios, state.sites)}
        scores, notes = dict(state.scores), list(state.notes)
        for site in state.sites:
            if self.of not in ("", site.kind):
                continue
            for coupling in site.couplings:
                name = f"{site.name}.{coupling.name}"
                if not coupling.prunable or (wanted is not None and not {name, f"{site.name}.heads"} & wanted):
                    continue
                found = self.score(state, site, coupling)
                if found is None:
                    notes.append(f"{name}: could not be watched; its largest channels stay")
                    found = ScoreWeights().score(Weights(state.graph), coupling)
                scores[name] = found
            if site.heads is not None and site.heads.prunable and f"{site.name}.vo" in scores:
                scores[f"{site.name}.heads"] = scores[f"{site.name}.vo"].sum(axis=1)[None]
        return replace(state, scores=scores, notes=tuple(notes))

    def score(self, state: State, site: Site, coupling: Coupling) -> np.ndarray | None:
        assert state.moments is not None
        measure, name = MEASURES[self.by], f"{site.name}.{coupling.name}"
        own = state.moments.of(name)
        if not {"q", "k"} <= own.keys() and "out" not in own:
            return None

        def each(sums: Sums) -> np.ndarray:
            return np.asarray(measure(sums).reshape(coupling.groups, coupling.width, -1).sum(axis=2))

        if coupling.name == "qk":
            score = of_products(state.graph, coupling, own, each, np.sqrt if self.by == "magnitude" else np.asarray)
        else:
            score = each(own["out"])
        if self.by == "variance-norm" and coupling.consumed:
            read = sum(np.square(columns(state.graph, m)).sum(axis=1) for m in coupling.members if m.role == "out")
            score = score * np.asarray(read).reshape(score.shape)
        return np.asarray(score)
