"""share-scores: queries, keys and values of a head keep the same channels, by the mean of both scores.

One transcription of ToaSt's algorithm has a single set for W_Q, W_K, W_V and W_O; the released code has one for Q and K
and one for V and O, which is what happens without this pass. Scores are divided by their mean over the head first,
because the two are not of one scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..state import State


@dataclass(frozen=True)
class ShareScores:
    """Let qk and vo of every attention keep the same channels."""

    name = "share-scores"

    def __call__(self, state: State) -> State:
        scores, notes = dict(state.scores), list(state.notes)
        for site in state.sites:
            names = [f"{site.name}.qk", f"{site.name}.vo"]
            own = [scores[name] for name in names if name in scores]
            if len(own) < 2:
                continue
            if own[0].shape != own[1].shape:
                notes.append(f"{site.name}: queries and values have different widths; each keeps its own channels")
                continue
            mean = sum(np.maximum(s, 0) / np.maximum(s, 0).mean(axis=1, keepdims=True).clip(1e-30) for s in own) / 2
            scores |= dict.fromkeys(names, np.asarray(mean))
        return replace(state, scores=scores, notes=tuple(notes))
