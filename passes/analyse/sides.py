"""How what a tap shows is summed, and what that takes of memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from toastc.calibration.taps import Tap
from toastc.system.cores import CORES
from toastc.system.errors import ToastcError
from toastc.system.memory import free_memory

from ..state import State

ROOM = 1 << 29  # bytes of matrices that are worked on at one time
MATRICES = 5  # as large as what is known of a coupling, in float32
BESIDE = 1 << 30  # bytes of streams, of images, of the model while it runs, at most
WAITING = 32  # inputs whose streams wait for a fit, as bytes that are watched


@dataclass(frozen=True)
class Side:
    """How the channels of a tap are summed: in so many groups, with products inside each, or across all of them."""

    groups: int
    width: int
    together: bool

    @staticmethod
    def of(key: str, tap: Tap, alone: bool) -> Side:
        groups, width, copies = tap.index.shape
        if not key.endswith("/out"):
            return Side(groups, width * copies, False)
        return Side(width, copies, False) if alone and groups == 1 else Side(groups, width * copies, True)

    @property
    def products(self) -> int:
        return self.groups * self.width**2 * (self.groups if self.together else 1)

    def stored(self, seen: float) -> int:
        """How many numbers are kept, when so many were seen: rows, while they are fewer than channels."""
        return int(min(self.products, seen)) if self.together else self.products


Sides = Mapping[str, Side]


def sides_of(taps: Mapping[str, Tap], alone: bool) -> dict[str, Side]:
    return {key: Side.of(key, tap, alone) for key, tap in taps.items()}


def check_room(state: State, sides: Sides, seen: float, others: Mapping[str, Sides]) -> None:
    """Better said now than by the kernel, which ends the process. `seen`: of so many inputs all tokens are summed. `others` are
    words that ask for less.
    """
    need, free = room(state, sides, seen), free_memory()
    if free is None or need <= free:
        return
    sizes = {word: room(state, own, seen) for word, own in others.items()}
    fit = [f"{word} needs about {bytes_as_text(size)}" for word, size in sizes.items() if size <= free]
    say = f"; {' and '.join(fit)}" if fit else "; --recipe magnitude needs little beside the model"
    raise ToastcError(f"memory: this run needs about {bytes_as_text(need)}, and {bytes_as_text(free)} are free{say}")


def room(state: State, sides: Sides, seen: float) -> int:
    """Bytes, more or less, of all sums, of the weights (a runtime has them twice), of the model while it runs, and of what fits
    consumers.
    """
    inputs = {key: math.prod(state.graph.shape(tap.value)) / state.graph.batch for key, tap in state.taps.items()}
    stored = [side.stored(seen * inputs[key]) for key, side in sides.items()]
    beside = min(BESIDE, WAITING * state.watched_bytes)
    largest = max(stored, default=1)
    algebra = MATRICES * at_once(largest) * largest
    return 4 * (sum(stored) + algebra + 2 * int(state.graph.totals()[1])) + beside


def at_once(largest: int) -> int:
    """How many couplings are worked on beside each other, of which so many numbers are known."""
    return max(1, min(CORES, ROOM // (4 * MATRICES * max(largest, 1))))


def bytes_as_text(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size, 0) / 1e6:.0f} MB"
