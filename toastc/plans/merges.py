"""Token merging as data: neighbours of a grid are merged along one axis, so that what is left is still a grid.

    {"before": "blocks.4", "merge": "horizontal", "rule": "mean", "proportional": true}      h4 in short
    {"before": "blocks.4", "merge": "horizontal", "pairs": 3}                                h4:3
    {"before": "*", "merge": "bipartite", "pairs": 13}                                       t:13
    {"merge": "unread"}                                                                      unread

`mean` takes every pair as equals; `weighted` counts each as often as the patches that it already stands for. An odd row or
column at the end is carried over. Tokens in front of the grid (class, distillation, registers) stand aside. With `pairs` only so
many pairs of columns or rows are merged, in every image those that are most alike. `bipartite` is ToMe: the tokens behind the
attention of a block are taken apart in two, and so many of the first go to the token of the second that their key is most like
(`*`: in every block, or in every one behind the merges of columns and rows).
`unread` merges nothing: behind the last attention, tokens that no output depends on are left out, which changes no output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..system.errors import ToastcError
from ..system.vocabulary import Json

AXES = {"h": "horizontal", "v": "vertical", "t": "bipartite"}
RULES = ("mean", "weighted")


@dataclass(frozen=True)
class Merge:
    """Before which block, along which axis, by which rule; `proportional`: attention counts a merged token by its size."""

    before: str
    merge: str
    rule: str = "mean"
    proportional: bool = True
    pairs: int | None = None  # only so many, chosen at run time

    def to_dict(self) -> Json:
        return {k: v for k, v in asdict(self).items() if v is not None}


UNREAD = Merge("", "unread")


def parse_merges(given: object) -> tuple[Merge, ...]:
    """`"h4,v8"`, `"h4:3"`, `"t:13"`, or the list of a ratio file."""
    if isinstance(given, str):
        return tuple(short(word.strip()) for word in given.split(",") if word.strip())
    if not isinstance(given, Sequence):
        raise ToastcError('ratios: "tokens" must be a list of {"before": .., "merge": ..}')
    return tuple(given_merge(item, i) for i, item in enumerate(given))


def short(word: str) -> Merge:
    if word == "unread":
        return UNREAD
    found = re.fullmatch(r"([hv])(\d+)(?::(\d+))?|(t)(\d*):(\d+)", word)
    if found is None:
        raise ToastcError(f"tokens: {word} is not of the form h4 (horizontally, before block 4), v8, h4:3, t:13 or unread")
    if found[4]:
        return given_merge({"before": found[5] or "*", "merge": "bipartite", "pairs": int(found[6])}, 0)
    return given_merge({"before": found[2], "merge": AXES[found[1]]} | ({"pairs": int(found[3])} if found[3] else {}), 0)


def given_merge(item: object, number: int) -> Merge:
    key = f"tokens[{number}]"
    if isinstance(item, Merge):
        return item
    if not isinstance(item, Mapping):
        raise ToastcError(f'ratios: "{key}" must be an object with before and merge')
    if dict(item) in ({"merge": "unread"}, UNREAD.to_dict()):
        return UNREAD
    unknown = [k for k in item if k not in Merge.__dataclass_fields__]
    if unknown or not {"before", "merge"} <= set(item):
        raise ToastcError(f'ratios: "{key}" takes before, merge, rule, proportional and pairs; got {", ".join(map(str, item))}')
    rule = "weighted" if item["merge"] == "bipartite" else "mean"
    made = Merge(str(item["before"]), item["merge"], item.get("rule", rule), item.get("proportional", True), item.get("pairs"))
    if isinstance(made.pairs, bool) or not isinstance(made.pairs, int | None) or (made.pairs is not None and made.pairs < 1):
        raise ToastcError(f'ratios: "{key}": pairs is a number of pairs, 1 or more')
    if made.merge == "bipartite" and made.pairs is None:
        raise ToastcError(f'ratios: "{key}": how many pairs a bipartite merge takes must be given')
    if made.before == "*" and made.merge != "bipartite":
        raise ToastcError(f'ratios: "{key}": only bipartite merges go before every block')
    if made.merge not in AXES.values() or made.rule not in RULES or not isinstance(made.proportional, bool):
        raise ToastcError(
            f'ratios: "{key}": merge is one of {", ".join(AXES.values())}, rule of {", ".join(RULES)}, proportional true or false'
        )
    return made


@dataclass(frozen=True, eq=False)
class Layout:
    """Tokens of one image at some depth: `leading` ones aside, then a grid, row by row. `sizes`: patches in each token;
    `of_patch`: for each token of the whole sequence, the one it has become part of; `first`: and back, the first of them.
    Behind a choice at run time `sizes` and `of_patch` are None; behind a bipartite merge there is no `grid`.
    """

    leading: int
    height: int
    width: int
    sizes: np.ndarray | None
    of_patch: np.ndarray | None
    first: np.ndarray
    grid: bool = True

    @staticmethod
    def whole(leading: int, height: int, width: int) -> Layout:
        count = leading + height * width
        return Layout(leading, height, width, np.ones(count), np.arange(count), np.arange(count))

    @property
    def count(self) -> int:
        return self.leading + self.height * self.width

    def merged(self, merge: Merge) -> tuple[Layout, Pairs]:
        """What is left after a merge, and how it comes about."""
        if not self.grid:
            raise ToastcError(f"tokens: before {merge.before} there is no grid any more; columns and rows are merged first")
        assert merge.pairs is None, "which pairs are merged is chosen at run time"
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
        place = np.empty(self.count, np.int64)
        place[right], place[left] = np.arange(len(right)), np.arange(len(left))
        (height, width), share = first.shape, np.full(len(left), 0.5)
        if self.sizes is None or self.of_patch is None:
            return Layout(self.leading, height, width, None, None, self.first[left]), Pairs(left, right, share, place)
        sizes = np.where(alone, self.sizes[left], self.sizes[left] + self.sizes[right])
        if merge.rule == "weighted":
            share = self.sizes[left] / (self.sizes[left] + self.sizes[right])
        pairs = Pairs(left, right, np.where(alone, 1.0, share), place)
        return Layout(self.leading, height, width, sizes, place[self.of_patch], self.first[left]), pairs

    def after_pairs(self, merge: Merge) -> Layout:
        """What is left after a merge of pairs that are chosen at run time."""
        assert merge.pairs is not None
        if merge.merge == "bipartite":
            left = self.count - min(merge.pairs, (self.count - self.leading) // 2)
            return Layout(self.leading, 1, left - self.leading, None, None, np.arange(left), grid=False)
        if not self.grid:
            raise ToastcError(f"tokens: before {merge.before} there is no grid any more; columns and rows are merged first")
        across = merge.merge == "horizontal"
        most = (self.width if across else self.height) // 2
        if merge.pairs > most:
            lines = "columns" if across else "rows"
            raise ToastcError(f"tokens: before {merge.before} there are {most} pairs of {lines}, not {merge.pairs}")
        height, width = (self.height, self.width - merge.pairs) if across else (self.height - merge.pairs, self.width)
        return Layout(self.leading, height, width, None, None, np.arange(self.leading + height * width))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Token i becomes `share[i] x[left[i]] + (1 - share[i]) x[right[i]]`; token j of before becomes part of `place[j]`."""

    left: np.ndarray
    right: np.ndarray
    share: np.ndarray
    place: np.ndarray
