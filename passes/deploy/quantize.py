"""quantize: what linears read, and their weights, become 8-bit numbers with scales (static QDQ).

Weights have a scale for every output channel. What is read has one scale for the tensor; channels that are much louder than the
rest would spoil it, so behind a LayerNorm the loudness moves into the weights first, which changes nothing else. Ranges are
those with the least squared error, weighed by the weights that read it, on calibration data; the mean of the error that is left
goes into the bias. Then the error of every linear is added to the float model, one at a time, and compared at its outputs: the
linears that bring the most error for their arithmetic stay floats, as far as `floats` of the MACs go.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from toastc.calibration.data import fixed_batch
from toastc.calibration.synthetic import Synthetic
from toastc.graphs import Kind, Op, Role, Value
from toastc.graphs.protocols import Graph, Quantizer, Reader, bias_of
from toastc.system.arrays import as_array
from toastc.system.errors import CannotShrink, NothingToPrune
from toastc.system.vocabulary import Array

from ..analyse.gains import size
from ..analyse.inputs import first
from ..state import State

SHRINKS = (1.0, 0.97, 0.94, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
NEGLIGIBLE = 1 / 500  # of the MACs: such a linear brings no time
SPENT = 2e13  # MACs on measuring which linears suffer


@dataclass(frozen=True)
class Grid:
    """The 8-bit numbers of a tensor: `scale * (q - zero)`, with q from `least` to `most`."""

    scale: float
    zero: int
    least: int
    most: int

    @staticmethod
    def between(low: float, high: float, symmetric: bool) -> Grid:
        if symmetric:
            return Grid(max(-low, high, 1e-12) / 127, 0, -127, 127)
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max(high - low, 1e-12) / 255
        return Grid(scale, round(-low / scale), 0, 255)

    def rounded(self, x: np.ndarray) -> np.ndarray:
        q = np.clip(np.rint(x / self.scale) + self.zero, self.least, self.most)
        return np.asarray((q - self.zero) * self.scale, x.dtype)


@dataclass(eq=False)
class Quantized:
    """A linear: what it will hold. `smooth` is what its inputs are divided by before, and its weights multiplied with."""

    op: Op
    grid: Grid
    weight: np.ndarray  # int8 [in, out]
    scales: np.ndarray  # [out]
    smooth: np.ndarray | None
    shift: np.ndarray = field(default_factory=lambda: np.zeros(0))  # what is added to its bias
    error: float = 0.0  # what it does to the outputs alone, squared and relative

    def off(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """What it puts out too much."""
        read = x if self.smooth is None else x / self.smooth
        made = self.grid.rounded(read) @ (self.weight * self.scales).astype(np.float32) + self.shift
        return np.asarray(made - x @ weight, np.float32)


@dataclass(frozen=True)
class Quantize:
    """Make the linears 8-bit, all but those that suffer most."""

    images: int = 64
    rows: int = 1024
    floats: float = 0.05
    symmetric: bool = False  # what is read has no zero point: TensorRT asks for that
    name = "quantize"

    def __call__(self, state: State) -> State:
        if not isinstance(state.graph, Quantizer):
            raise CannotShrink("a torch module is not quantised here; export it to ONNX")
        graph, total = state.graph, state.graph.totals()[0]
        linears = [op for op in graph.ops if op.kind is Kind.LINEAR and op.axis == -1 and op.macs > NEGLIGIBLE * total]
        if not linears:
            raise NothingToPrune("no linear was found that could be quantised")
        if state.data is None:
            state = replace(state, data=Synthetic(graph.input_sizes(), self.images, state.seed))
        values: list[Array] = list(dict.fromkeys(op.inputs[0] for op in linears))
        rows = self.sampled(state, values)
        made: list[Quantized] = []
        for value in values:
            made += self.of(graph, value, [op for op in linears if op.inputs[0] == value], rows.pop(value))
        notes = self.sensitive(state, made, total)
        return replace(state, graph=graph, notes=(*state.notes, *notes))

    def sampled(self, state: State, values: list[Array]) -> dict[Any, np.ndarray]:
        """So many rows of each tensor, at random."""
        probe, rng = state.graph.probe(values), np.random.default_rng(state.seed)
        parts: dict[Any, list[np.ndarray]] = {v: [] for v in values}
        batches = first(state.data, self.images)
        for number, batch in enumerate(batches):
            state.tell(self.name, 0.5 * (number + 1) / len(batches))
            for value, array in zip(values, probe(batch)[1], strict=True):
                flat = as_array(array).reshape(-1, array.shape[-1])
                parts[value].append(flat[rng.choice(len(flat), min(len(flat), -(-self.rows // len(batches))), replace=False)])
        return {v: np.concatenate(own).astype(np.float32) for v, own in parts.items()}

    def of(self, graph: Graph, value: Value, ops: list[Op], rows: np.ndarray) -> list[Quantized]:
        weights = [weight_of(graph, op) for op in ops]
        smooth = loudness(graph, value, ops, rows, weights)
        if smooth is not None:
            rows, weights = rows / smooth, [w * smooth[:, None] for w in weights]
        grid = best_grid(rows, sum(np.square(w).sum(axis=1) for w in weights), self.symmetric)
        read, found = grid.rounded(rows), []
        for op, weight in zip(ops, weights, strict=True):
            numbers, scales = best_weights(weight, np.square(rows).mean(axis=0))
            one = Quantized(op, grid, numbers, scales, smooth)
            one.shift = -(read @ (numbers * scales).astype(np.float32) - rows @ weight).mean(axis=0)
            found.append(one)
        return found

    def sensitive(self, state: State, made: list[Quantized], total: int) -> list[str]:
        graph = state.graph
        images = int(np.clip(SPENT / (len(made) * total), 1, 8))
        images = fixed_batch(graph.input_sizes()) or images
        batches = [{k: a[:images] for k, a in batch.items()} for batch in first(state.data, 1)[:1]]
        reads: list[Array] = list(dict.fromkeys(one.op.inputs[0] for one in made))
        outs: list[Array] = [one.op.outputs[0] for one in made]
        probe = graph.probe(reads, nudge=outs)
        for batch in batches:
            clean, watched = probe(batch)
            seen = {v: as_array(a).astype(np.float32) for v, a in zip(reads, watched, strict=True)}
            for number, one in enumerate(made):
                state.tell(self.name, 0.5 + 0.5 * (number + 1) / len(made))
                off = one.off(seen[one.op.inputs[0]], weight_of(graph, one.op))
                outputs, _ = probe(batch, {one.op.outputs[0]: off})
                pairs = zip(clean, outputs, strict=True)
                one.error = sum(size(as_array(a) - as_array(b)) / (size(a) + 1e-30) for a, b in pairs)
        floats, left = list[Quantized](), self.floats * total
        for one in sorted(made, key=lambda one: one.error / one.op.macs, reverse=True):
            if one.op.macs <= left:
                floats.append(one)
                left -= one.op.macs
        write(graph, made, floats)
        before, after = (sum(o.error for o in some) ** 0.5 for some in (made, [o for o in made if o not in floats]))
        words = f"{len(made) - len(floats)} of {len(made)} linears are int8"
        if floats:
            names = sorted(o.op.path or str(o.op) for o in floats)
            words += f"; float stay {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        return [f"{words} (error of the outputs, one by one and summed: {before:.3f} with all of them, {after:.3f} so)"]


def weight_of(graph: Reader, op: Op) -> np.ndarray:
    """[in, out]"""
    weight = graph.constant(op.inputs[1])
    return np.asarray(weight if op.weight_axes == (0, 1) else weight.T, np.float32)


def loudness(graph: Reader, value: Value, ops: list[Op], rows: np.ndarray, weights: list[np.ndarray]) -> np.ndarray | None:
    """What each channel is divided by before it is rounded, where the LayerNorm in front can do it."""
    norm = graph.producer(value)
    alone = {op for op, _ in graph.users(value)} == set(ops) and value not in graph.outputs
    if norm is None or Role.NORM not in norm.role or not alone or len(norm.inputs) < 2:
        return None
    if not all(v is None or graph.is_constant(v) for v in norm.inputs[1:3]):
        return None
    loud = np.abs(rows).max(axis=0)
    heavy = np.max([np.abs(w).max(axis=1) for w in weights], axis=0)
    smooth = np.sqrt(np.maximum(loud, 1e-5) / np.maximum(heavy, 1e-5))
    return np.asarray(smooth / np.exp(np.log(smooth).mean()), np.float32)


def best_grid(rows: np.ndarray, weigh: Array, symmetric: bool) -> Grid:
    low, high = float(rows.min()), float(rows.max())
    best, least = None, np.inf
    for shrink in SHRINKS:
        grid = Grid.between(low * shrink, high * shrink, symmetric)
        error = float((np.square(grid.rounded(rows) - rows).mean(axis=0) * weigh).sum())
        if error < least:
            best, least = grid, error
    assert best is not None
    return best


def best_weights(weight: np.ndarray, power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 and a scale for every output channel, with the least error for inputs of such a power."""
    top = np.maximum(np.abs(weight).max(axis=0), 1e-12) / 127
    scales, least = top.copy(), np.full(len(top), np.inf)
    for shrink in SHRINKS[:7]:
        made = np.clip(np.rint(weight / (top * shrink)), -127, 127) * (top * shrink)
        error = (np.square(made - weight) * power[:, None]).sum(axis=0)
        better = error < least
        scales[better], least[better] = top[better] * shrink, error[better]
    return np.clip(np.rint(weight / scales), -127, 127).astype(np.int8), scales.astype(np.float32)


def write(graph: Graph, made: list[Quantized], floats: list[Quantized]) -> None:
    done: set[Any] = set()
    for one in made:
        op, smooth = one.op, one.smooth
        if smooth is not None and op.inputs[0] not in done:
            norm = graph.producer(op.inputs[0])
            assert norm is not None
            for slot in (1, 2):
                if len(norm.inputs) > slot and norm.inputs[slot] is not None:
                    old = graph.constant(norm.inputs[slot])
                    graph.set_constant(norm, slot, old.shape, lambda old=old, smooth=smooth: old / smooth)  # type: ignore[misc]
            done.add(op.inputs[0])
        if one in floats:
            if smooth is not None:
                rows = smooth[:, None] if op.weight_axes == (0, 1) else smooth
                old = graph.constant(op.inputs[1])
                graph.set_constant(op, 1, old.shape, lambda old=old, rows=rows: old * rows)  # type: ignore[misc]
            continue
        add, slot = bias_of(graph, op) or graph.insert_bias(op)
        old = graph.constant(add.inputs[slot])
        graph.set_constant(add, slot, old.shape, lambda old=old, one=one: old + one.shift.reshape(old.shape))  # type: ignore[misc]
        assert isinstance(graph, Quantizer)
        graph.quantize(op, (one.grid.scale, one.grid.zero, one.grid.least), one.weight, one.scales)
    graph.finish()
