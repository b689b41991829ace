"""score-tokens: ToaSt's token channel selection (TCS), its static form.

The score of a channel of what fc1 or fc2 reads, on one image, from a random sample S of its tokens:

    with a class token      2 |x_cls| + mean over i in S of A_cls,i |x_i|     A: its attention in this block, mean over heads
    without                 mean over i in S of |x_i|

averaged over the calibration images. `balance=code` weighs the two terms by 1/(1+P) and P/(1+P), P patches. The share of
the tokens that is sampled grows from `sample` in the first block to `deepest` in the last; `count` asks for a number instead.
Attention with queries that several heads share, and FFNs whose tokens can not be told from images, are scored without guide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from toastc.calibration.data import fixed_batch
from toastc.calibration.moments import to_float64
from toastc.graphs import Guide, Value
from toastc.graphs.protocols import Reader
from toastc.plans.ratios import narrowed
from toastc.plans.sites import Coupling
from toastc.system.errors import ToastcError
from toastc.system.vocabulary import Array

from ..analyse.collect import WATCHED
from ..shrink.selections import readers
from ..state import State
from ..tokens.layout import leading_tokens
from .sampling import balanced, check_sample, guided_by, sampled, tokens_of


@dataclass(frozen=True, eq=False)
class Job:
    """One coupling to be scored: where its channels are read, and what guides the score."""

    name: str
    coupling: Coupling
    value: Value
    tokens: int
    share: float
    guide: Guide | None


@dataclass(frozen=True)
class ScoreTokens:
    """Score FFN channels by what they do on sampled tokens, guided by the class token (ToaSt's TCS, static)."""

    guide: str = "auto"  # by the class token's attention: auto, yes or no
    sample: float = 0.02
    deepest: float = 0.2
    count: int = 0  # tokens, instead of a share
    balance: str = "paper"
    name = "score-tokens"
    measures = True

    def __post_init__(self) -> None:
        check_sample(self.name, self.guide, self.sample, self.deepest, self.balance)

    def __call__(self, state: State) -> State:
        if state.data is None:
            raise ToastcError("this recipe needs calibration data; give data (--calibrate DATA), or take recipe toast-image")
        leading = leading_tokens(state.graph)
        if self.guide == "yes" and not leading:
            raise ToastcError("score-tokens: guide=yes, but no class token was found in front of the others")
        jobs = self.jobs(state, leading)
        scores = dict(state.scores)
        if jobs:
            scores |= self.scored(state, jobs, leading)
        return replace(state, scores=scores)

    def jobs(self, state: State, leading: int) -> list[Job]:
        wanted = None if state.ratios is None else {name for name, _, _ in narrowed(state.ratios, state.sites)}
        ffns = [s for s in state.sites if s.kind == "ffn"]
        found = []
        for depth, site in enumerate(ffns):
            tokens = tokens_of(state.graph, site)
            share = self.sample + (self.deepest - self.sample) * depth / max(len(ffns) - 1, 1)
            for coupling in site.every:
                name = f"{site.name}.{coupling.name}"
                if not coupling.prunable or (wanted is None and coupling.name == "inputs") or (wanted and name not in wanted):
                    continue
                if tokens is None:
                    raise ToastcError(f"score-tokens: {name}: its tokens and images can not be told apart, or vary in number")
                guide = guided_by(state.graph, state.sites, site) if self.guide != "no" and 0 < leading < tokens else None
                share = self.count / tokens if self.count else share
                found.append(Job(name, coupling, readers(coupling)[0].inputs[0], tokens, min(share, 1.0), guide))
        return found

    def scored(self, state: State, jobs: Sequence[Job], leading: int) -> dict[str, np.ndarray]:
        seen = dict.fromkeys(v for job in jobs for v in (job.value, *read_by(job.guide)))
        probe, bytes_each = state.graph.probe(list(seen)), bytes_of(state.graph, list(seen))
        pieces = fixed_batch(state.graph.input_sizes()) or max(1, WATCHED // bytes_each)
        sums, images = {job.name: np.zeros(job.coupling.width) for job in jobs}, 0
        data = state.data.part(state.workers.rank, state.workers.count)
        for number, batch in enumerate(data):
            count = len(next(iter(batch.values())))
            for start in range(0, count, pieces):
                _, made = probe({k: v[start : start + pieces] for k, v in batch.items()})
                watched = dict(zip(seen, made, strict=True))
                for job in jobs:
                    place = [state.seed, number * state.workers.count + state.workers.rank, start]
                    sums[job.name] += self.of_images(job, watched, leading, place)
            images += count
            if data.size:
                state.tell(self.name, images * state.workers.count / data.size)
        return {name: state.workers.add(total)[None] for name, total in sums.items()}

    def of_images(self, job: Job, watched: Mapping[Value, Any], leading: int, place: list[int]) -> np.ndarray:
        """[channels]: the sum of the scores over these images."""
        array = watched[job.value]
        xp = array_namespace(array)
        x = xp.abs(xp.reshape(array, (array.shape[0], -1, array.shape[-1])))
        at = xp.asarray(sampled(job.tokens, leading if job.guide else 0, job.share, place), device=x.device)
        size = xp.take(x, at, axis=1)
        if job.guide is None:
            return to_float64(xp.sum(xp.mean(size, axis=1), axis=0))
        attended = xp.take(attention_of(job.guide, watched), at, axis=1)
        own, rest = balanced(self.balance, job.tokens - leading)
        score = own * x[:, 0] + rest * xp.mean(size * attended[:, :, None], axis=1)
        return to_float64(xp.sum(score, axis=0))


def read_by(guide: Guide | None) -> list[Value]:
    """The tensors that tell how much the class token attends to each token."""
    if guide is None:
        return []
    return [guide.op.inputs[guide.slot]] if guide.slot >= 0 else list(guide.op.inputs[:2])


def attention_of(guide: Guide, watched: Mapping[Value, Any]) -> Array:
    """[images, tokens], the mean over heads."""
    values = [watched[v] for v in read_by(guide)]
    xp = array_namespace(values[0])
    if guide.slot >= 0:
        return xp.mean(values[0][:, :, 0, :], axis=1)
    spec = guide.op.attention
    assert spec is not None
    q, k = (by_head(xp, v, spec.layouts[i], spec.heads) for i, v in enumerate(values))
    logits = xp.matmul(q[:, :, :1], xp.permute_dims(k, (0, 1, 3, 2))) * spec.scale
    weights = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    return xp.mean((weights / xp.sum(weights, axis=-1, keepdims=True))[:, :, 0], axis=1)


def by_head(xp: Any, array: Array, layout: str, heads: int) -> Array:
    """[images, heads, tokens, width]"""
    if layout == "bn(hd)":
        array = xp.reshape(array, (*array.shape[:2], heads, -1))
    return array if layout == "bhnd" else xp.permute_dims(array, (0, 2, 1, 3))


def bytes_of(graph: Reader, values: Sequence[Value]) -> int:
    """Of these tensors, for one image."""
    return max(1, sum(4 * int(np.prod(graph.shape(v))) for v in values) // graph.batch)
