"""Token merging as data: neighbours of a grid are merged along one axis, so that what is left is still a grid.

    {"before": "blocks.4", "merge": "horizontal", "rule": "mean", "proportional": true}      h4 in short

`mean` takes every pair as equals; `weighted` counts each as often as the patches that it already stands for. An odd row or
column at the end is carried over. Tokens in front of the grid (class, distillation, registers) stand aside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .errors import ToastcError

AXES = {"h": "horizontal", "v": "vertical"}
RULES = ("mean", "weighted")


@dataclass(frozen=True)
class Merge:
    """Before which block, along which axis, by which rule; `proportional`: attention counts a merged token by its size."""

    before: str
    merge: str
    rule: str = "mean"
    proportional: bool = True

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def parse_merges(given: object) -> tuple[Merge, ...]:
    """`"h4,v8"`, or the list of a ratio file."""
    if isinstance(given, str):
        return tuple(short(word.strip()) for word in given.split(",") if word.strip())
    if not isinstance(given, Sequence):
        raise ToastcError('ratios: "tokens" must be a list of {"before": .., "merge": ..}')
    return tuple(given_merge(item, i) for i, item in enumerate(given))


def short(word: str) -> Merge:
    found = re.fullmatch(r"([hv])(\d+)", word)
    if found is None:
        raise ToastcError(f"tokens: {word} is not of the form h4 (horizontally, before block 4) or v8")
    return Merge(found[2], AXES[found[1]])


def given_merge(item: object, number: int) -> Merge:
    key = f"tokens[{number}]"
    if isinstance(item, Merge):
        return item
    if not isinstance(item, Mapping):
        raise ToastcError(f'ratios: "{key}" must be an object with before and merge')
    unknown = [k for k in item if k not in Merge.__dataclass_fields__]
    if unknown or not {"before", "merge"} <= set(item):
        raise ToastcError(f'ratios: "{key}" takes before, merge, rule and proportional; got {", ".join(map(str, item))}')
    made = Merge(str(item["before"]), item["merge"], item.get("rule", "mean"), item.get("proportional", True))
    if made.merge not in AXES.values() or made.rule not in RULES or not isinstance(made.proportional, bool):
        raise ToastcError(
            f'ratios: "{key}": merge is one of {", ".join(AXES.values())}, rule of {", ".join(RULES)}, proportional true or false'
        )
    return made


@dataclass(frozen=True, eq=False)
class Layout:
    """Tokens of one image at some depth: `leading` ones aside, then a grid, row by row. `sizes`: patches in each token;
    `of_patch`: for each token of the whole sequence, the one it has become part of; `first`: and back, the first of them.
    """

    leading: int
    height: int
    width: int
    sizes: np.ndarray
    of_patch: np.ndarray
    first: np.ndarray

    @staticmethod
    def whole(leading: int, height: int, width: int) -> Layout:
        count = leading + height * width
        return Layout(leading, height, width, np.ones(count), np.arange(count), np.arange(count))

    @property
    def count(self) -> int:
        return self.leading + self.height * self.width

    def merged(self, merge: Merge) -> tuple[Layout, Pairs]:
        """What is left after a merge, and how it comes about."""
        grid = self.leading + np.arange(self.height * self.width).reshape(self.height, self.width)
        grid = grid if merge.merge == "horizontal" else grid.T
        if grid.shape[1] < 2:
            raise ToastcError(f"tokens: the grid is {self.height} x {self.width} before {merge.before}: nothing left to merge")
        first, second = grid[:, 0::2], grid[:, 1::2]
        if grid.shape[1] % 2:
            second = np.concatenate([second, first[:, -1:]], axis=1)
        if merge.merge == "vertical":
            first, second = first.T, second.T
        aside = np.arange(self.leading)
        left, right = (np.concatenate([aside, side.ravel()]) for side in (first, second))
        alone = left == right
        sizes = np.where(alone, self.sizes[left], self.sizes[left] + self.sizes[right])
        share = np.full(len(left), 0.5) if merge.rule == "mean" else self.sizes[left] / (self.sizes[left] + self.sizes[right])
        share = np.where(alone, 1.0, share)
        place = np.empty(self.count, np.int64)
        place[right], place[left] = np.arange(len(right)), np.arange(len(left))
        height, width = first.shape
        return Layout(self.leading, height, width, sizes, place[self.of_patch], self.first[left]), Pairs(left, right, share)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Token i becomes `share[i] x[left[i]] + (1 - share[i]) x[right[i]]`."""

    left: np.ndarray
    right: np.ndarray
    share: np.ndarray
