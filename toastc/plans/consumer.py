"""What a linear becomes that reads channels of which some are gone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .sites import Coupling


@dataclass(frozen=True, eq=False)
class Consumer:
    """The linear that reads the channels, for those that stay."""

    weight: np.ndarray  # [channels that stay, out]
    bias: np.ndarray  # [out], by which its bias grows
    of: int  # how wide a group was

    def __post_init__(self) -> None:
        require(self.weight.ndim == 2 and self.bias.shape == self.weight.shape[1:], "a consumer is [channels, out], with a bias")

    def fits(self, coupling: Coupling, width: int) -> str:
        if not coupling.consumed:
            return "it fits a consumer, and no linear consumes its channels"
        if self.of != coupling.width or len(self.weight) % width or len(self.weight) > coupling.groups * width:
            return f"its consumer reads {len(self.weight)} channels, {coupling.groups} x {width} stay"
        return ""

    def arrays(self) -> dict[str, np.ndarray]:
        return {"weight": self.weight, "bias": self.bias, "of": np.array(self.of)}

    @staticmethod
    def among(arrays: dict[str, np.ndarray]) -> Consumer | None:
        """The one that is in a choice's arrays, which it is taken out of."""
        if "weight" not in arrays:
            return None
        weight, bias, of = (arrays.pop(name) for name in ("weight", "bias", "of"))
        return Consumer(weight, bias, int(of.item()))


def require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)
