"""A budget by what may be lost: the smallest model whose outputs keep a promise.

error=0.02   the outputs move by at most 2 % of their size (root mean square)
agree=0.99   at least 99 % of the inputs are told to be of the same class as by the dense model
drop=0.5     at most half a point of accuracy is lost, where labels are known

Each is a sum over inputs that nothing was fitted on, and has to hold with its standard error added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..system.errors import ToastcError
from .cost import TARGETS, Target

Outputs = Sequence[np.ndarray]
Terms = tuple[np.ndarray, np.ndarray]  # of every input: what it loses, and its part of what that is measured by


@dataclass(frozen=True)
class Kind:
    about: str
    terms: Callable[[Outputs, Outputs, np.ndarray | None], Terms]
    counts: bool  # inputs are right or wrong
    most: float  # a bound below which, and above zero, makes sense
    loss: Callable[[float], float]  # what a bound allows to be lost, of one
    said: Callable[[float], float]  # and back: a loss as users say it
    moves: float  # by that times what is lost outputs have moved, more or less: where to begin
    labels: bool = False


@dataclass(frozen=True)
class Promise:
    what: str
    bound: float

    def __str__(self) -> str:
        return f"{self.what}={self.bound:g}"

    @property
    def kind(self) -> Kind:
        return KINDS[self.what]

    @property
    def allowed(self) -> float:
        return self.kind.loss(self.bound)

    @property
    def inputs(self) -> int:
        """How many it takes to show that it is kept, even where nothing is lost."""
        return int(np.ceil(1 / self.allowed)) if self.kind.counts else 2

    def kept(self, terms: Sequence[Terms]) -> Kept:
        """What is lost over all inputs, and at most so, by one standard error."""
        lost, by = (np.concatenate(each).astype(np.float64) for each in zip(*terms, strict=True))
        count, whole = len(lost), max(float(by.sum()), 1e-300)
        share = float(lost.sum()) / whole
        spread = float(np.square(lost - share * by).sum())  # of a ratio of two sums
        if self.kind.counts:
            return Kept(self, share, share + (spread + 1) ** 0.5 / whole, count)  # one more that may turn out the other way
        error = (spread * count / max(count - 1, 1)) ** 0.5 / whole
        return Kept(self, share**0.5, (share + error) ** 0.5, count)


@dataclass(frozen=True)
class Kept:
    """What a plan loses, as measured; `most` with its standard error."""

    promise: Promise
    loss: float
    most: float
    inputs: int

    @property
    def holds(self) -> bool:
        return self.most <= self.promise.allowed

    def to_dict(self) -> dict[str, object]:
        said = self.promise.kind.said
        return {"what": self.promise.what, "promised": self.promise.bound, "measured": said(self.loss),
                "at_worst": said(self.most), "inputs": self.inputs}  # fmt: skip

    def __str__(self) -> str:
        found, worst = (self.promise.kind.said(x) for x in (self.loss, self.most))
        return f"{self.promise.what} {found:.4g}, {worst:.4g} with its standard error, on {self.inputs} inputs"


def read_target(given: str | float | Target | Promise) -> Target | Promise:
    """`macs=0.6` (0.6 means the same), `error=0.02`."""
    if isinstance(given, Promise):
        return given
    what, _, number = given.partition("=") if isinstance(given, str) else ("", "", "")
    if (what := what.strip()) not in KINDS:
        if isinstance(given, str) and what not in TARGETS and number:
            raise ToastcError(f"target: {what} is not known; there are {', '.join((*TARGETS, *KINDS))}")
        return Target.parse(given)
    try:
        promise = Promise(what, float(number))
    except ValueError:
        raise ToastcError(f"target: {given} is not of the form {what}=0.5") from None
    if not 0 < promise.bound < promise.kind.most:
        raise ToastcError(f"target: {given}: {promise.kind.about}; it lies between 0 and {promise.kind.most:g}")
    return promise


def moved(dense: Outputs, small: Outputs, labels: np.ndarray | None) -> Terms:
    count = len(dense[0])
    pairs = [(a, b, np.isfinite(a)) for a, b in zip(dense, small, strict=True) if a.dtype.kind == "f"]
    of, now = ([np.where(real, x, 0.0).astype(np.float64) for *both, real in pairs for x in [both[n]]] for n in (0, 1))
    return each([a - b for a, b in zip(of, now, strict=True)], count), each(of, count)


def each(arrays: Sequence[np.ndarray], count: int) -> np.ndarray:
    """The energy of every input; that of what belongs to none is everybody's."""
    own = [np.square(a) for a in arrays]
    found = np.full(count, sum(float(a.sum()) for a in own if a.shape[:1] != (count,)) / count)
    return sum((a.reshape(count, -1).sum(axis=1) for a in own if a.shape[:1] == (count,)), found)


def classes(outputs: Outputs) -> np.ndarray:
    """What an output says of every input: [inputs, classes]."""
    found = next((a for a in outputs if a.dtype.kind == "f" and a.ndim == 2 and a.shape[1] > 1), None)
    if found is None:
        raise ToastcError("target: agree and drop are of models with an output of [inputs, classes]; this one has error")
    return found


def disagree(dense: Outputs, small: Outputs, labels: np.ndarray | None) -> Terms:
    apart = classes(dense).argmax(axis=1) != classes(small).argmax(axis=1)
    return apart.astype(np.float64), np.ones(len(apart))


def less_right(dense: Outputs, small: Outputs, labels: np.ndarray | None) -> Terms:
    assert labels is not None
    before, after = (classes(outputs).argmax(axis=1) == labels for outputs in (dense, small))
    return before.astype(np.float64) - after, np.ones(len(labels))


KINDS = {
    "error": Kind("how far outputs may move, by their own size", moved, False, 1.0, lambda e: e, lambda e: e, moves=1.0),
    "agree": Kind("share of inputs that keep their class", disagree, True, 1.0, lambda a: 1 - a, lambda d: 1 - d, moves=5.0),
    "drop": Kind("points of accuracy to lose", less_right, True, 100.0, lambda p: p / 100, lambda d: 100 * d, 15.0, labels=True),
}  # fmt: skip
