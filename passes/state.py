"""What a pass is, and running a tuple of them.

A pass is a frozen dataclass that is called with a `State` and returns a new one; its fields are its options
and its docstring's first line is its help.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol

import numpy as np

from toastc.calibration.moments import Moments
from toastc.calibration.resume import Unfinished
from toastc.calibration.taps import Tap
from toastc.calibration.workers import Workers
from toastc.graphs.protocols import Graph
from toastc.plans.cost import Target
from toastc.plans.latency import Times
from toastc.plans.plan import Plan
from toastc.plans.promises import Kept
from toastc.plans.ratios import Ratios
from toastc.plans.sites import Coupling, Reject, Site
from toastc.system.errors import ToastcError
from toastc.system.memory import give_back
from toastc.system.progress import Tell, silent
from toastc.system.vocabulary import Read


@dataclass(frozen=True)
class State:
    """What the passes hand on.

    `scores[coupling]` is [groups, width]: small means redundant. `losses[coupling]` says what every width costs, and
    `gains[coupling]` how much of it arrives at the outputs. `widths[coupling]` are the widths to keep.
    """

    graph: Graph
    ratios: Ratios | None = None
    target: Target | None = None
    data: Any = None  # calibration.Batches
    matched: Any = None  # what the matcher knows of the graph; gone once the graph is shrunk
    sites: tuple[Site, ...] = ()
    rejects: tuple[Reject, ...] = ()
    taps: Mapping[str, Tap] = field(default_factory=dict)
    moments: Moments | None = None
    losses: Read = field(default_factory=dict)
    gains: Mapping[str, float] = field(default_factory=dict)
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    allocate: Callable[[State], State] | None = None  # the pass that set them
    times: Mapping[str, Times] = field(default_factory=dict)  # by site, where the target is a latency
    total_time: float = 0.0
    plan: Plan = field(default_factory=Plan)
    kept: Kept | None = None  # what the plan loses, where that was promised
    merges: tuple[Any, ...] = ()  # (merge, layout before, layout after), of the tokens that were merged at the beginning
    unmerged: Mapping[str, int] = field(default_factory=dict)  # MACs of the sites before that
    notes: tuple[str, ...] = ()
    seed: int = 0
    tell: Tell = silent
    apart: Any = None  # of the data, inputs that nothing is fitted on, to judge by: calibration.Batches
    given_moments: bool = False  # of a file, which may have seen those batches
    workers: Workers = field(default_factory=Workers)
    unfinished: Unfinished | None = None  # where the sums are kept while they are made

    @property
    def watched_bytes(self) -> int:
        """What the taps of one input take."""
        shapes = [self.graph.shape(value) for value in {place.value for tap in self.taps.values() for place in tap.places}]
        return max(1, sum(4 * math.prod(shape) for shape in shapes) // self.graph.batch)

    def site(self, name: str) -> Site:
        """The site that a coupling of this name is of."""
        return next(s for s in self.sites if s.name == name.rpartition(".")[0])

    def coupling(self, name: str) -> Coupling:
        found = self.site(name).coupling(name.rpartition(".")[2])
        assert found is not None
        return found


def taken(default: Any, option: str) -> Any:
    """A field of a pass that takes an option of the compile: what is asked there, or what the pass says, if that is more."""
    return field(default=default, metadata={"takes": option})


def tuned(step: Pass, asks: Callable[[str], Any]) -> Pass:
    """The pass with what it takes of a request."""
    if not is_dataclass(step):
        return step
    own = {
        each.name: (getattr(step, each.name), asks(each.metadata["takes"])) for each in fields(step) if "takes" in each.metadata
    }
    more = {name: max(mine, asked) for name, (mine, asked) in own.items() if asked is not None}
    return replace(step, **more) if more else step


class Pass(Protocol):
    name: str

    def __call__(self, state: State) -> State: ...


class PassFailed(RuntimeError):
    """A pass broke: our fault, not the user's. Names it and the passes that had run."""


def costs(passes: Sequence[Pass], state: State) -> dict[str, float]:
    """What each pass will cost, as it says, in runs of the model on one input."""
    known = ((step.name, getattr(step, "cost", None)) for step in passes)
    return {name: float(cost(state)) for name, cost in known if cost is not None}


def run(passes: Sequence[Pass], state: State) -> tuple[State, dict[str, float]]:
    """Run the passes in order, telling of each; returns the last state and the seconds of each pass."""
    seconds: dict[str, float] = {}
    for step in passes:
        start = time.perf_counter()
        state.tell(step.name)
        try:
            state = step(state)
        except (ToastcError, MemoryError):
            raise
        except Exception as error:
            before = ", ".join(seconds) or "none"
            raise PassFailed(f"pass {step.name} failed (passes before it: {before}): {type(error).__name__} {error}") from error
        give_back()
        seconds[step.name] = time.perf_counter() - start
    return state, seconds


__all__ = ["Pass", "PassFailed", "State", "replace", "run"]
