"""score-duplicates: a channel whose weights point where another channel's point can go."""

from dataclasses import dataclass, replace

import numpy as np

from toastc.passes import State


@dataclass(frozen=True)
class ScoreDuplicates:
    """Score channels by how little they resemble any other channel of their head or FFN."""

    sharp: float = 1.0  # above 1: size counts less, likeness more
    name = "score-duplicates"

    def __call__(self, state: State) -> State:
        scores = dict(state.scores)
        for site in state.sites:
            for coupling in (c for c in site.couplings if c.prunable):
                scores[f"{site.name}.{coupling.name}"] = self.score(state.graph, coupling)
        return replace(state, scores=scores)

    def score(self, graph, coupling) -> np.ndarray:
        """[groups, width]: the size of a channel, times how far it points from the one most like it."""
        rows = np.concatenate([vectors(graph, member) for member in coupling.members], axis=2)
        size = np.linalg.norm(rows, axis=2)
        unit = rows / np.maximum(size, 1e-12)[..., None]
        likeness = np.abs(unit @ unit.transpose(0, 2, 1)) * (1 - np.eye(coupling.width))
        return size * (1 - likeness.max(axis=2)) ** self.sharp


def vectors(graph, member) -> np.ndarray:
    """[groups, width, rest]: what a member of the coupling owns of its weight, channel by channel."""
    op, slot = member.operand
    weight = np.moveaxis(graph.constant(op.inputs[slot]), member.axes, range(len(member.axes)))
    return weight.reshape(np.prod(weight.shape[: len(member.axes)]), -1)[member.index]
