"""ToaSt's published schedules as ratio files.

A block keeps `max(1, floor(width (1 - ratio)))` of every head's channels, and the floor of what fc1 and fc2 read; the
first block stays whole. Ratios are written so that rounding up, which is what a ratio file does, gives the same widths.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from ..system.errors import ToastcError
from ..system.vocabulary import Json, Read


@dataclass(frozen=True)
class Schedule:
    """One operating point: fractions dropped, block by block, and what was reported for it."""

    model: str
    point: str
    depths: tuple[int, ...]
    width: int
    heads: int
    given: Read
    dense: Mapping[str, float]

    def ratios(self) -> Json:
        """A ratio file: exactly these widths in every block."""
        widths = [self.width * 2**stage for stage, depth in enumerate(self.depths) for _ in range(depth)]
        head = self.width // self.heads
        attention = [0.0] + [removed(head, self.given["attention"])] * (len(widths) - 1)
        ffn = {
            name: [removed(width * times, ratio) for width, ratio in zip(widths, self.given[name], strict=True)]
            for name, times in (("inputs", 1), ("hidden", 4))
        }
        return {"attention": {"qk": attention, "vo": attention}, "ffn": ffn, "round_to": 1}


def removed(width: int, ratio: float) -> float:
    kept = max(1, math.floor(round(width * (1 - ratio), 9)))
    return round(1 - kept / width, 12)


def schedules() -> dict[str, dict[str, Schedule]]:
    """`{model: {point: schedule}}`"""
    known = json.loads(files("toastc").joinpath("plans/toast_schedules.json").read_text())["models"]
    return {
        model: {
            point: Schedule(model, point, tuple(own["depths"]), own["width"], own["heads"], given, own["dense"])
            for point, given in own["points"].items()
        }
        for model, own in known.items()
    }


def schedule(model: str, point: str) -> Schedule:
    known = schedules()
    if model not in known:
        raise ToastcError(f"no schedule is known for {model}; there are {', '.join(known)}")
    if point not in known[model]:
        raise ToastcError(f"{model} has no point {point}; there are {', '.join(known[model])}")
    return known[model][point]
