"""What a plan does to one coupling.

`Keep(index)`: these channels stay; index[groups, width'] holds positions within the group. An optional `fold` lets the
consumer make up for what is gone: its columns become `W . fold`.
`Basis(left, right)`: producers become `left . W`, the consumer `W . right`; left is [groups, width', width].
Between Q and K, Q is the producer and K the consumer: q' = left q, k' = right^T k.
`Select(width)`: all stay, and the consumer reads those that score highest, chosen at run time.

`fold` and `right` either treat every group alone, [groups, width, width'], or all channels together,
[groups * width, kept groups * width']. An optional `shift` [groups, width] is what the gone channels are on
average: the consumer's bias becomes `b + W . shift`. A `consumer` in their place is what the linear behind was fitted to be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..system.vocabulary import Read
from .consumer import Consumer, require
from .sites import Coupling

CONSUMERS = ("k", "out")  # roles of the members that meet what the others produce
READERS = ("out", "aside")  # those of linears that take the channels
PER = ("image", "batch")


@dataclass(frozen=True, eq=False)
class Keep:
    index: np.ndarray
    fold: np.ndarray | None = None
    shift: np.ndarray | None = None
    consumer: Consumer | None = None

    def __post_init__(self) -> None:
        index, fold = self.index, self.fold
        require(index.ndim == 2 and index.dtype.kind in "iu" and index.shape[1] > 0, "an index is whole numbers, groups x width")
        require(bool((index >= 0).all() and (np.diff(index) > 0).all()), "an index holds rising positions")
        if fold is not None:
            require(fold.ndim == 2 or fold.shape[::2] == index.shape, "a fold is [groups, width, kept] or [channels, kept]")
        require(fold is None or self.consumer is None, "a consumer takes the place of a fold")
        require(self.shift is None or (self.shift.ndim == 2 and len(self.shift) == len(index)), "a shift is [groups, width]")

    @property
    def width(self) -> int:
        return int(self.index.shape[1])

    @property
    def exact(self) -> bool:
        return self.fold is None and self.consumer is None

    @property
    def shifts(self) -> bool:
        """Does the consumer's bias change?"""
        return self.shift is not None or self.consumer is not None

    @property
    def of(self) -> int | None:
        """How many channels a group had, where the choice tells."""
        if self.consumer is not None:
            return self.consumer.of
        if self.shift is not None:
            return int(self.shift.shape[1])
        if self.fold is None:
            return None
        return int(self.fold.shape[1] if self.fold.ndim == 3 else self.fold.shape[0] // len(self.index))

    def mixes(self, role: str) -> bool:
        """Does a member of this role get new numbers? Else those that stay are those that were."""
        return not self.exact and role in CONSUMERS

    def fits(self, coupling: Coupling) -> str:
        """Why this can not be done to the coupling, if so."""
        if len(self.index) != coupling.groups or self.index.max() >= coupling.width:
            return f"it is for other widths than the model's {coupling.groups} x {coupling.width}"
        own = "" if self.consumer is None else self.consumer.fits(coupling, self.width)
        return own or unfit(self.fold, self.shift, coupling)

    def arrays(self) -> dict[str, np.ndarray]:
        own = {} if self.consumer is None else self.consumer.arrays()
        return {"index": self.index.astype(np.int32)} | given(fold=self.fold, shift=self.shift) | own

    @staticmethod
    def from_arrays(**arrays: np.ndarray) -> Keep:
        consumer = Consumer.among(arrays)
        return Keep(**arrays, consumer=consumer)


@dataclass(frozen=True, eq=False)
class Basis:
    left: np.ndarray
    right: np.ndarray | None
    shift: np.ndarray | None = None
    consumer: Consumer | None = None
    exact = False

    def __post_init__(self) -> None:
        left, right = self.left, self.right
        require(left.ndim == 3 and 0 < left.shape[1] <= left.shape[2], "a basis keeps some of [groups, kept, width]")
        back = (len(left), left.shape[2], left.shape[1])
        if right is None:
            require(self.consumer is not None, "a basis leads back, or into a consumer")
        else:
            require(right.ndim == 2 or right.shape == back, "a basis leads back by [groups, width, kept] or [channels, kept]")
            require(self.consumer is None, "a consumer takes the place of the way back")
        require(self.shift is None or self.shift.shape == left.shape[::2], "a shift is [groups, width]")

    def mixes(self, role: str) -> bool:
        return True

    def fits(self, coupling: Coupling) -> str:
        if not coupling.rotatable:
            return "it is no coupling whose channels may be mixed"
        if self.left.shape[::2] != (coupling.groups, coupling.width):
            return f"its basis is for {self.left.shape[::2]} channels, the model has {coupling.groups} x {coupling.width}"
        own = "" if self.consumer is None else self.consumer.fits(coupling, self.width)
        return own or unfit(self.right, self.shift, coupling)

    @property
    def shifts(self) -> bool:
        return self.shift is not None or self.consumer is not None

    @property
    def width(self) -> int:
        return int(self.left.shape[1])

    @property
    def of(self) -> int:
        return int(self.left.shape[2])

    @property
    def index(self) -> np.ndarray:
        """Where the new channels stand when they are padded back: at the front of their group."""
        return np.broadcast_to(np.arange(self.width), self.left.shape[:2])

    def arrays(self) -> dict[str, np.ndarray]:
        own = {} if self.consumer is None else self.consumer.arrays()
        return {"left": self.left} | given(right=self.right, shift=self.shift) | own

    @staticmethod
    def from_arrays(**arrays: np.ndarray) -> Basis:
        consumer = Consumer.among(arrays)
        return Basis(arrays["left"], arrays.get("right"), arrays.get("shift"), consumer)


@dataclass(frozen=True, eq=False)
class Select:
    """At run time the consumer reads the `width` channels that score highest: ToaSt's token channel selection.

    A channel's score is `weights[0] |x_cls| + weights[1] mean over the sampled tokens i of A_cls,i |x_i|`, where A is the
    attention of the class token in this block, averaged over heads (`guided`), or the mean of |x_i| alone. `per` says
    whether every image has its own choice, or all images of a batch one together. `masks` zeroes what was not chosen
    in the residual stream as well.
    """

    width: int
    of: int
    per: str
    tokens: np.ndarray  # positions of the sampled tokens
    guided: bool = False
    weights: tuple[float, float] = (2.0, 1.0)
    masks: bool = False
    exact = True
    shift = None
    consumer = None
    shifts = False

    def __post_init__(self) -> None:
        require(0 < self.width <= self.of, "a selection reads some of its channels")
        require(self.per in PER, "a selection is made per image or per batch")
        require(self.tokens.ndim == 1 and self.tokens.size > 0, "a selection samples tokens")

    def mixes(self, role: str) -> bool:
        return False

    def fits(self, coupling: Coupling) -> str:
        if coupling.groups != 1 or self.of != coupling.width:
            return f"it selects among {self.of} channels, the model has {coupling.groups} x {coupling.width}"
        return "" if coupling.consumed else "no linear consumes its channels"

    @property
    def index(self) -> np.ndarray:
        """Nothing is cut."""
        return np.arange(self.of)[None]

    def arrays(self) -> dict[str, np.ndarray]:
        numbers = [self.width, self.of, PER.index(self.per), self.guided, *self.weights, self.masks]
        return {"tokens": self.tokens.astype(np.int32), "select": np.array(numbers, np.float64)}

    def to_dict(self) -> dict[str, object]:
        own = {"of": self.of, "per": self.per, "tokens": self.tokens.tolist(), "guided": self.guided}
        return own | {"weights": list(self.weights), "masks": self.masks}

    @staticmethod
    def from_dict(row: Read) -> Select:
        own, rest = row["weights"]
        tokens = np.array(row["tokens"], np.int32)
        return Select(int(row["width"]), int(row["of"]), row["per"], tokens, bool(row["guided"]), (own, rest), bool(row["masks"]))

    @staticmethod
    def from_arrays(tokens: np.ndarray, select: np.ndarray) -> Select:
        width, of, per, guided, own, rest, masks = select.tolist()
        return Select(int(width), int(of), PER[int(per)], tokens, bool(guided), (own, rest), bool(masks))


Choice = Keep | Basis | Select


def unfit(matrix: np.ndarray | None, shift: np.ndarray | None, coupling: Coupling) -> str:
    rows = None if matrix is None else matrix.shape[0] if matrix.ndim == 2 else matrix.shape[0] * matrix.shape[1]
    channels = coupling.groups * coupling.width
    if rows not in (None, channels):
        return f"it folds {rows} channels, the model has {channels}"
    if matrix is not None and matrix.ndim == 2 and not coupling.consumed:
        return "it folds its groups together, and no linear consumes them"
    if shift is not None and (shift.shape != (coupling.groups, coupling.width) or not coupling.consumed):
        return "it shifts channels that are not there, or that no linear consumes"
    return ""


def given(**arrays: np.ndarray | None) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if array is not None}
