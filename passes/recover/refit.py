"""refit-consumers: fit what takes the channels anew, block by block, to what the dense model has there.

Folding makes up for what a coupling loses, as if all before it were still whole. It is not: errors pile up along the
residual stream. So two copies of the calibration inputs go through the graph side by side, dense and as pruned so
far, and each consumer is fitted, by least squares, to what keeps the stream where the dense one is:

    W, b = argmin | stream_dense - (stream_pruned + gain (W h + b)) |^2        h: what the pruned channels are by now

The gain between a consumer and the stream (a LayerScale) is measured, and with it whether the way there is straight;
where it is not, the consumer keeps its fold. The graph is walked through once, from stream to stream, and of the inputs between
two of them only a few are in view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from array_api_compat import array_namespace

from toastc.calibration.moments import to_float64
from toastc.calibration.workers import Workers
from toastc.graphs import Live, Stage, Value
from toastc.plans.plan import Consumer, Plan, Select
from toastc.system.arrays import as_array
from toastc.system.cores import beside_each_other
from toastc.system.vocabulary import Array

from ..analyse.algebra import fitted, like
from ..analyse.covariances import shrunken
from ..analyse.inputs import few
from ..analyse.simulate import residual, surviving
from ..analyse.streams import flat, settled, shaped
from ..match.taps import all_taps
from ..state import State
from .evidence import evidence
from .jobs import ENOUGH, Job, at_once, enough, jobs_of

STRAIGHT = 1e-2  # relative error up to which the way to the stream counts as a gain alone


@dataclass(frozen=True)
class RefitConsumers:
    """Fit consumers anew, block by block, to keep the residual stream where the dense model has it."""

    images: int = 1024  # at most; fewer where they show enough of the widest coupling
    enough: int = ENOUGH  # tokens for each of its channels
    name = "refit-consumers"

    def cost(self, state: State) -> float:
        known = replace(state, taps=state.taps or all_taps(state.matched, state.sites))
        most = min(self.images, enough(known, self.enough))
        return 2.5 * (most if state.data is None else min(most, state.data.count or most))

    def __call__(self, state: State) -> State:
        if not state.plan or state.data is None:
            return state
        jobs = list(jobs_of(state))
        steps = steps_of(state, jobs)
        workers, batches = state.workers, few(state, min(self.images, enough(state, self.enough)), at_once(state))
        if len(batches) < workers.count:
            workers = Workers()  # each does all of it
        dense = [state.graph.begin(batch) for batch in workers.own(batches)]
        del batches  # each is in memory until its first stretch is walked
        pruned = [dict(live) for live in dense]
        done = 0
        lanes = min(state.graph.lanes, len(dense))
        stages = state.graph.stages([value for value, _, _ in steps], lanes)
        for stretch in stretches(steps):
            walked = [(*step, next(stages)) for step in stretch]

            def along(n: int, walked: Sequence[Walked] = walked) -> int:
                dense[n], pruned[n] = walk(walked, n, dense[n], pruned[n], workers)
                return n

            along(0)  # which tells how the others are walked
            for n in beside_each_other(along, range(1, len(dense)), lanes):
                state.tell(self.name, (done + len(stretch) * n / len(dense)) / len(steps))
            done += len(stretch)
            value, job, _ = stretch[-1]
            refit(job, value, dense, pruned, workers, lanes)
        return replace(state, plan=Plan(dict(state.plan.choices) | {job.name: job.choice for job in jobs}))


Act = Callable[[Job, int, Live, Live, Workers], None]
Step = tuple[Value, Job, Act]
Walked = tuple[Value, Job, Act, Stage]


def steps_of(state: State, jobs: Sequence[Job]) -> list[Step]:
    """What is to be done at which value, in the order of the graph, up to the last that is fitted."""
    steps: list[Step] = []
    for job in jobs:
        steps.append((job.tap.value, job, cut if job.out is None else take_out))
        if job.out is not None:
            steps.append((job.out, job, put_in))
        if job.stream is not None:
            steps.append((job.stream, job, compare))
    steps.sort(key=lambda step: state.graph.position(step[0]))
    for (_, job, act), (_, after, then) in pairwise(steps):
        job.lonely |= act is put_in and then is compare and after is job
    last = max((n for n, step in enumerate(steps) if step[2] is compare), default=-1)
    return steps[: last + 1]


def stretches(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Each ends where a consumer is fitted, for which all inputs must have come that far."""
    own: list[Step] = []
    for step in steps:
        own.append(step)
        if step[2] is compare:
            yield own
            own = []


def walk(steps: Sequence[Walked], n: int, dense: Live, pruned: Live, workers: Workers) -> tuple[Live, Live]:
    """One batch, dense and as pruned, along a stretch; with the first, what is nudged to measure gains."""
    nudged = [job for _, job, _, _ in steps if job.nudged is not None]
    for _, job, act, stage in steps:
        before, dense = dense, stage(dense)
        pruned = behind(job, before, dense, pruned, stage) if act is put_in else stage(pruned)
        for other in nudged if not n else ():
            assert other.nudged is not None
            other.nudged = stage(other.nudged)
        act(job, n, dense, pruned, workers)
        nudged = [other for other in {*nudged, job} if other.nudged is not None]
    return settled(dense), settled(pruned)


def behind(job: Job, before: Live, dense: Live, pruned: Live, stage: Stage) -> Live:
    """Along a stretch that holds a consumer alone, which sees no channels: it makes the same of nothing every time."""
    if job.nothing is None:
        pruned = stage(pruned)
        if [value for value in dense if value not in before] == [job.out] and job.whole:
            job.nothing = to_float64(flat(pruned[job.out], job.axis)[0, :])
        return pruned
    now, xp = dense[job.out], array_namespace(dense[job.out])
    row = xp.reshape(like(job.nothing, now), [-1 if i == job.axis % now.ndim else 1 for i in range(now.ndim)])
    nothing = xp.broadcast_to(row, tuple(now.shape))
    return {value: nothing if value == job.out else pruned[value] for value in dense}


def cut(job: Job, n: int, dense: Live, pruned: Live, workers: Workers) -> None:
    """The channels become what is left of them."""
    value = job.tap.value
    pruned[value] = pruned[value] + residual(job.tap, pruned[value], job.choice, job.groups)


def take_out(job: Job, n: int, dense: Live, pruned: Live, workers: Workers) -> None:
    """The channels that stay are put aside, and the consumer sees none."""
    now = pruned[job.tap.value]
    rows = job.tap.rows(now)
    job.kept[n] = flat(surviving(rows, job.choice, job.groups))
    pruned[job.tap.value] = array_namespace(now).zeros_like(now) if job.whole else now + job.tap.put(-rows, now)


def put_in(job: Job, n: int, dense: Live, pruned: Live, workers: Workers) -> None:
    """What the planned consumer makes of them is added to what it makes of nothing. Where how that gets to the stream is
    known, and nothing looks at it before, it is added there.
    """
    assert job.out is not None and not isinstance(job.choice, Select) and job.choice.consumer is not None
    if n and job.lonely and job.gain is not None:
        return
    rows, fit, now = job.kept[n], job.choice.consumer, pruned[job.out]
    pruned[job.out] = now + shaped(rows @ like(fit.weight, rows) + like(fit.bias, rows), now, job.axis)
    job.placed.add(n)
    if job.stream is None:
        del job.kept[n]
    elif not n:
        own = dense[job.out]
        noise = np.random.default_rng(0).standard_normal(tuple(own.shape)) * float(np.std(as_array(own)))
        job.nudge = like(noise, own)
        job.nudged = dense | {job.out: own + job.nudge}


def compare(job: Job, n: int, dense: Live, pruned: Live, workers: Workers) -> None:
    """How what is added to the consumer's output arrives in the stream."""
    assert job.stream is not None
    if not n:
        assert job.nudged is not None
        there = flat(dense[job.stream], job.axis)
        moved = flat(job.nudged[job.stream], job.axis) - there
        job.gain = agreed(gain_of(flat(job.nudge, job.axis), moved), there.shape[-1], workers)
        job.nudged = job.nudge = None


def gain_of(nudge: Array, moved: Array) -> np.ndarray | None:
    """[out]: the factor of each channel between the consumer and the stream; None if there is more to it than that."""
    before, after = to_float64(nudge), to_float64(moved)
    if before.shape != after.shape:
        return None
    gain = (after * before).sum(axis=0) / np.maximum((before**2).sum(axis=0), 1e-300)
    apart = np.linalg.norm(after - gain * before) / max(float(np.linalg.norm(after)), 1e-300)
    return np.asarray(gain) if apart < STRAIGHT else None


def agreed(gain: np.ndarray | None, size: int, workers: Workers) -> np.ndarray | None:
    """What the first process measured."""
    if workers.count == 1:
        return gain
    said = np.full(size, np.nan) if gain is None else gain
    said = workers.add(said if not workers.rank else np.zeros(size))
    return said if np.isfinite(said).all() else None


def refit(job: Job, value: Value, dense: Sequence[Live], pruned: list[Live], workers: Workers, lanes: int) -> None:
    """The choice with its consumer fitted anew; `pruned` moves along."""
    if job.gain is None:
        job.kept = {}
        return
    seen = evidence(job, dense, pruned, lanes).gathered(workers)
    kept, job.kept = job.kept, {}
    assert not isinstance(job.choice, Select) and job.choice.consumer is not None
    count, mean, scatter = seen.sums.count, seen.sums.mean.ravel(), seen.sums.scatter[0, ...]
    planned, gain = job.choice.consumer, job.gain
    cross = (seen.cross - (scatter @ like(planned.weight * gain, scatter)).T) / count  # what the planned one leaves
    slope = as_array(fitted(cross, shrunken(seen.sums)))  # [out, kept]
    off = seen.missing / count - (mean @ planned.weight + planned.bias) * gain
    scale = np.where(np.abs(gain) > 1e-6 * np.abs(gain).max(), gain, np.inf)
    more = Consumer((slope / scale[:, None]).T, (off - slope @ mean) / scale, planned.of)
    weight, bias = (planned.weight + more.weight).astype(np.float32), (planned.bias + more.bias).astype(np.float32)
    fit = Consumer(weight, bias, planned.of)

    def arrived(n: int) -> None:
        live = pruned[n]
        live[value] = live[value] + shaped(job.there(kept.pop(n), more if n in job.placed else fit), live[value], job.axis)

    list(beside_each_other(arrived, range(len(pruned)), lanes))
    job.choice = replace(job.choice, consumer=fit)
