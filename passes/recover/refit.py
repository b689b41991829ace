"""refit-consumers: fit what takes the channels anew, block by block, to what the dense model has there.

Folding makes up for what a coupling loses, as if all before it were still whole. It is not: errors pile up along the
residual stream. So two copies of the calibration inputs go through the graph side by side, dense and as pruned so
far, and each consumer is fitted, by least squares, to what keeps the stream where the dense one is:

    W, b = argmin | stream_dense - (stream_pruned + gain (W h + b)) |^2        h: what the pruned channels are by now

The gain between a consumer and the stream (a LayerScale) is measured, and with it whether the way there is straight;
where it is not, the consumer keeps its fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toastc.calibration.data import as_array
from toastc.calibration.moments import Sums
from toastc.calibration.taps import Tap
from toastc.graphs import Kind, Live, Op, Value
from toastc.graphs.protocols import Reader
from toastc.plans.plan import Basis, Choice, Keep, Plan
from toastc.system.vocabulary import Array

from ..analyse.gains import first
from ..analyse.losses import columns, fitted, shrunken
from ..analyse.simulate import residual, surviving
from ..state import State

STRAIGHT = 1e-2  # relative error up to which the way to the stream counts as a gain alone
MOST = 3 << 30  # bytes of tensors that are kept at one time


@dataclass(eq=False)
class Job:
    """A coupling that is cut: where its channels are seen, and where its consumer meets the stream."""

    name: str
    tap: Tap
    choice: Choice
    groups: Sequence[int]
    weight: np.ndarray | None  # [channels, out] of the consumer
    stream: Value | None
    nudged: Live | None = None  # a live set of the first batch, with random numbers added to the channels
    nudge: np.ndarray | None = None  # and what they make of the consumer's output


@dataclass(frozen=True)
class RefitConsumers:
    """Fit consumers anew, block by block, to keep the residual stream where the dense model has it."""

    images: int = 1024  # at most; fewer where their tensors would not fit
    name = "refit-consumers"

    def __call__(self, state: State) -> State:
        if not state.plan or state.data is None:
            return state
        jobs = list(jobs_of(state))
        where = [(value, job) for job in jobs for value in (job.tap.value, job.stream) if value is not None]
        where.sort(key=lambda pair: state.graph.position(pair[0]))
        batches = first(state.data, self.images)
        dense = [state.graph.begin(batch) for batch in batches]
        pruned = [dict(live) for live in dense]
        kept: dict[str, list[np.ndarray]] = {}
        rng, choices = np.random.default_rng(state.seed), dict(state.plan.choices)
        stages = state.graph.stages([v for v, _ in where])
        for number, ((value, job), stage) in enumerate(zip(where, stages, strict=False)):
            state.tell(self.name, (number + 1) / len(where))
            if not number:
                fits = fitting(stage(dense[0]))
                dense, pruned = dense[:fits], pruned[:fits]
            for n in range(len(dense)):
                dense[n], pruned[n] = stage(dense[n]), stage(pruned[n])
            for other in jobs:
                if other.nudged is not None:
                    other.nudged = stage(other.nudged)
            if value is job.tap.value:
                if job.stream is not None:
                    kept[job.name] = [flat(surviving(job.tap.rows(live[value]), job.choice, job.groups)) for live in pruned]
                    nudge(job, dense[0], rng)
                for live in pruned:
                    live[value] = live[value] + residual(job.tap, live[value], job.choice, job.groups)
            else:
                choices[job.name] = refitted(job, value, dense, pruned, kept.pop(job.name))
        return replace(state, plan=Plan(choices))


def fitting(live: Live) -> int:
    """How many such batches fit into the memory that is meant for them, three times over."""
    return max(1, int(MOST / (3 * sum(getattr(t, "nbytes", 0) for t in live.values()) + 1)))


def jobs_of(state: State) -> Iterator[Job]:
    for site in state.sites:
        for coupling in site.couplings:
            name = f"{site.name}.{coupling.name}"
            choice = state.plan.get(site.name, coupling.name)
            tap = state.taps.get(f"{name}/q") or state.taps.get(f"{name}/out")
            if choice is None or tap is None:
                continue
            consumers = [m for m in coupling.members if m.role == "out"]
            stream = weight = None
            if len(consumers) == 1 and tap.copies == 1 and not choice.exact:
                weight = columns(state.graph, consumers[0])
                stream = stream_behind(state.graph, consumers[0].operand[0])
            yield Job(name, tap, choice, state.plan.groups(site.name, coupling), weight, stream)


def stream_behind(graph: Reader, op: Op) -> Value | None:
    """The sum of what a linear puts out, scaled and shifted on its way, and something else; None if there is none."""
    while True:
        value = op.outputs[0]
        users = graph.users(value)
        if len(users) != 1 or value in graph.outputs:
            return None
        op = users[0][0]
        if len(op.outputs) != 1 or not (op.kind is Kind.SHAPE or (op.kind is Kind.ELEMENTWISE and op.effect != "nonlinear")):
            return None
        if sum(v is not None and not graph.is_constant(v) for v in op.inputs) > 1:
            return op.outputs[0]


def flat(array: Array) -> np.ndarray:
    rows = as_array(array)
    return rows.reshape(-1, rows.shape[-1])


def like(array: np.ndarray, tensor: Array) -> Any:
    """The numbers as the other tensor has them: numpy or torch, its type, its device."""
    return array.astype(tensor.dtype, copy=False) if isinstance(tensor, np.ndarray) else tensor.new_tensor(array)


def nudge(job: Job, live: Live, rng: np.random.Generator) -> None:
    rows = as_array(job.tap.rows(live[job.tap.value]))
    noise = (rng.standard_normal(rows.shape) * rows.std()).astype(rows.dtype)
    value = live[job.tap.value]
    job.nudged = live | {job.tap.value: value + job.tap.put(like(noise, value), value)}
    assert job.weight is not None
    job.nudge = noise.reshape(len(rows), -1) @ job.weight


def gain_of(job: Job, live: Live, value: Value) -> np.ndarray | None:
    """[out]: the factor of each channel between the consumer and the stream; None if there is more to it than that."""
    assert job.nudged is not None and job.nudge is not None
    moved = flat(job.nudged[value]).astype(np.float64) - flat(live[value])
    job.nudged = None
    if moved.shape != job.nudge.shape:
        return None
    gain = (moved * job.nudge).sum(axis=0) / np.maximum((job.nudge**2).sum(axis=0), 1e-300)
    apart = np.linalg.norm(moved - gain * job.nudge) / max(float(np.linalg.norm(moved)), 1e-300)
    return gain if apart < STRAIGHT else None


def refitted(job: Job, value: Value, dense: list[Live], pruned: list[Live], kept: list[np.ndarray]) -> Choice:
    """The choice with its consumer fitted anew; `pruned` moves along."""
    gain = gain_of(job, dense[0], value)
    if gain is None:
        return job.choice
    own, cross, missing = Sums.none(1, kept[0].shape[1], True), 0.0, 0.0
    for rows, whole, cut in zip(kept, dense, pruned, strict=True):
        error = flat(whole[value]) - flat(cut[value])
        own += Sums.of(rows[:, None, :], True)
        cross = cross + (error.T @ rows).astype(np.float64)
        missing = missing + error.sum(axis=0, dtype=np.float64)
    mean, off = own.mean.ravel(), missing / own.count
    slope = fitted(cross / own.count - np.outer(off, mean), shrunken(own))  # [out, kept]
    weight = job.weight
    assert weight is not None
    scale = np.where(np.abs(gain) > 1e-6 * np.abs(gain).max(), gain, np.inf)
    back = np.linalg.pinv(weight, rcond=1e-6)  # [out, channels]
    fold = ((slope / scale[:, None]).T @ back).T  # [channels, kept]
    shift = ((off - slope @ mean) / scale) @ back
    now, const = (weight.T @ fold) * gain[:, None], (shift @ weight) * gain
    for rows, live in zip(kept, pruned, strict=True):
        moved = (rows @ now.T.astype(rows.dtype) + const.astype(rows.dtype)).reshape(live[value].shape)
        live[value] = live[value] + like(moved, live[value])
    return with_more(job.choice, fold, shift, job.tap.index.shape[:2])


def with_more(choice: Choice, fold: np.ndarray, shift: np.ndarray, shape: tuple[int, ...]) -> Choice:
    own = shift.reshape(shape) + (0 if choice.shift is None else choice.shift)
    if isinstance(choice, Basis):
        return replace(choice, right=choice.right + fold, shift=own)
    assert isinstance(choice, Keep) and choice.fold is not None
    return replace(choice, fold=choice.fold + fold, shift=own)
