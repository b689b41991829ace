"""assume-white: moments as if every linear took white noise, so that the weights alone decide.

With them, analyse-losses and plan-losses are the plain truncated SVD of W_q' W_k and of W_o W_v that compression tools
without data do. It is here to be compared with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from toastc.calibration.moments import Moments, Sums
from toastc.plans.sites import Coupling

from ..state import State
from .members import Weights


@dataclass(frozen=True)
class AssumeWhite:
    """Take the moments of queries, keys and values from the weights alone: plain SVD."""

    name = "assume-white"

    def __call__(self, state: State) -> State:
        weights, moments = Weights(state.graph), Moments(source="white noise into every linear", images=1)
        for site in state.sites:
            for coupling in site.couplings:
                if coupling.prunable and coupling.rotatable and coupling.name in ("qk", "vo"):
                    for role, key in (("q", "q"), ("k", "k")) if coupling.name == "qk" else (("v", "out"),):
                        moments.note(f"{site.name}.{coupling.name}/{key}", self.sums(weights, coupling, role, key == "out"))
        return replace(state, moments=moments)

    @staticmethod
    def sums(weights: Weights, coupling: Coupling, role: str, together: bool) -> Sums:
        rows = np.concatenate([weights.vectors(m) for m in coupling.members if m.role == role], axis=2).astype(np.float64)
        if together:
            rows = rows.reshape(1, -1, rows.shape[2])
        outer = rows @ rows.swapaxes(1, 2)
        none = np.zeros((coupling.groups, coupling.width))
        return Sums(1.0, none, outer, none, float(np.trace(outer, axis1=1, axis2=2).sum()), float((outer**2).sum()))
