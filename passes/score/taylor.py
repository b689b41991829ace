"""score-taylor: how much the outputs would move if a channel were zero, to first order.

    E[(sum over tokens of x . dL/dx)^2],   L = outputs . noise

With noise for labels this is the diagonal of the Gauss-Newton matrix of the distance to the dense model, so that no labels
are needed. It needs gradients, which torch models have and ONNX files have not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from toastc.graphs.protocols import Gradients
from toastc.system.arrays import as_array
from toastc.system.errors import ToastcError

from ..analyse.inputs import first
from ..match.taps import all_taps
from ..state import State


@dataclass(frozen=True)
class ScoreTaylor:
    """Score channels by what the outputs lose without them, from gradients (torch models only)."""

    images: int = 256
    name = "score-taylor"

    def __call__(self, state: State) -> State:
        if state.data is None:
            raise ToastcError("score-taylor: needs calibration data")
        found = all_taps(state.matched, state.sites)
        taps = {key.rpartition("/")[0]: tap for key, tap in found.items() if key.endswith(("/q", "/out"))}
        if not isinstance(state.graph, Gradients):
            raise ToastcError("an ONNX file has no gradients; give the torch module, or take another score")
        slopes = state.graph.slopes([tap.value for tap in taps.values()])
        scores = {name: np.zeros(tap.index.shape[:2]) for name, tap in taps.items()}
        for number, batch in enumerate(first(state.data, self.images)):
            count = len(next(iter(batch.values())))
            watched, gradients = slopes(batch, state.seed + number)
            for (name, tap), array, slope in zip(taps.items(), watched, gradients, strict=True):
                plain = replace(tap, plus=None, tokens=None)
                change = as_array(plain.rows(array)).astype(np.float64) * as_array(plain.rows(slope))
                moved = change.reshape(count, -1, *tap.index.shape).sum(axis=(1, 4))
                scores[name] += (moved**2).sum(axis=0)
        for site in state.sites:
            if site.heads is not None and site.heads.prunable and f"{site.name}.vo" in scores:
                scores[f"{site.name}.heads"] = scores[f"{site.name}.vo"].sum(axis=1)[None]
        wanted = [f"{s.name}.{c.name}" for s in state.sites for c in s.couplings if c.prunable]
        missing = [name for name in wanted if name not in scores]
        if missing:
            raise ToastcError(f"score-taylor: {missing[0]} can not be watched; set its ratio to 0 or use another recipe")
        return replace(state, scores={**state.scores, **scores})
