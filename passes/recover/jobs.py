"""What there is to fit anew: consumers of what is cut, and as many inputs as that takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from toastc.calibration.taps import Tap
from toastc.graphs import Live, Op, Value
from toastc.plans.plan import Choice, Consumer
from toastc.system.vocabulary import Array

from ..analyse.algebra import like
from ..analyse.inputs import AT_ONCE, few
from ..analyse.losses import consumed
from ..analyse.streams import stream_behind
from ..state import State

IN_VIEW = 1 << 23  # bytes of them that will wait for a fit: while they run, the model takes several times as much
ENOUGH = 24  # tokens for each of the channels that are fitted
MOST = 1 << 28  # bytes of streams and channels that wait for a fit


@dataclass(eq=False)
class Job:
    """A coupling that is cut: where its channels are seen, and where its consumer meets the stream."""

    name: str
    tap: Tap
    choice: Choice
    groups: Sequence[int]
    out: Value | None = None  # what the consumer makes of them, if that can be told
    stream: Value | None = None  # the sum that it goes into
    axis: int = -1  # where channels stand in both
    whole: bool = False  # the consumer sees no other channels
    lonely: bool = False  # nothing else that is fitted comes between the two
    nothing: np.ndarray | None = None  # [out]: what the consumer makes of no channels
    kept: dict[int, Array] = field(default_factory=dict)  # the channels that stay, for every batch
    nudge: Array = None  # random numbers added to what the consumer made of the first batch
    nudged: Live | None = None  # what is alive of it then
    gain: np.ndarray | None = None
    placed: set[int] = field(default_factory=set)  # the batches in which the planned consumer stands

    def there(self, rows: Array, consumer: Consumer) -> Array:
        """What a consumer makes of these channels, as it arrives in the stream."""
        return rows @ like(consumer.weight * self.gain, rows) + like(consumer.bias * self.gain, rows)


def jobs_of(state: State) -> Iterator[Job]:
    for site in state.sites:
        for coupling in site.couplings:
            name = f"{site.name}.{coupling.name}"
            choice = state.plan.get(site.name, coupling.name)
            tap = state.taps.get(f"{name}/q") or state.taps.get(f"{name}/out")
            if choice is None or tap is None or tap.more:  # what is used again keeps its fold: it is due before all is seen
                continue
            choice = consumed(state.graph, coupling, tap, choice)
            job = Job(name, tap, choice, state.plan.groups(site.name, coupling))
            if choice.consumer is not None:
                op: Op = next(m for m in coupling.members if m.role == "out").operand[0]
                job.out, job.stream, job.axis = op.outputs[0], stream_behind(state.graph, op), op.axis
                shape = state.graph.shape(tap.value)
                job.whole = tap.index.size == math.prod(shape[axis] for axis in tap.axes)
            yield job


def enough(state: State, each: int = ENOUGH) -> int:
    """How many inputs show every channel that may be fitted often enough, and are not too many to be held."""
    need = max((each * channels / tokens for tokens, channels, _ in sizes(state)), default=1.0)
    return int(max(1, min(np.ceil(need), MOST // held(state))))


def at_once(state: State) -> int:
    """How many inputs are in view together, in every lane."""
    return int(max(1, min(AT_ONCE, IN_VIEW // held(state))))


def held(state: State) -> float:
    """Bytes that wait for a fit, of one input: two streams, and the channels that stay."""
    return max((4 * tokens * (2 * out + channels) for tokens, channels, out in sizes(state)), default=1.0)


def sizes(state: State) -> Iterator[tuple[float, int, int]]:
    """Of every consumer: tokens of one input, channels that it takes and that it puts out."""
    graph = state.graph
    for site in state.sites:
        for coupling in site.couplings:
            tap = state.taps.get(f"{site.name}.{coupling.name}/out")
            if tap is not None:
                tokens = math.prod(graph.shape(tap.value)) / tap.index.size / graph.batch
                op: Op = next(m for m in coupling.members if m.role == "out").operand[0]
                yield tokens, tap.index.size, graph.shape(op.outputs[0])[op.axis]


def inputs_to_keep(state: State) -> dict[str, np.ndarray]:
    """Those that consumers would be fitted on, so that moments in a file stand for the data."""
    batches = few(state, enough(state), AT_ONCE)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
