"""What may be asked of a graph, by need. A function's signature says which of it the function needs.

Reader      look at it                 every graph
Runner      run it, whole or in parts  every graph
Gradients   slopes of its outputs      torch
Editor      change it                  every graph
Builder     draw new nodes             every graph, through its editor
Quantizer   8-bit linears              ONNX
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import Protocol, Self, runtime_checkable

import numpy as np

from ..plans.latency import Block
from ..system.vocabulary import Operand
from . import Dim, Live, Op, Role, Stage, Tensors, Value


class Reader(Protocol):
    ops: list[Op]
    outputs: frozenset[Operand]
    batch: int  # of the shapes

    def shape(self, value: Value) -> tuple[int, ...]: ...
    def varies(self, value: Value) -> tuple[bool, ...]: ...  # per axis: is the size only known at run time
    def is_constant(self, value: Value) -> bool: ...
    def constant(self, value: Value) -> np.ndarray: ...
    def identity(self, value: Value) -> Hashable: ...  # the same for two constants that are one tensor
    def constant_name(self, op: Op, slot: int) -> str: ...
    def producer(self, value: Value) -> Op | None: ...
    def users(self, value: Value) -> Sequence[tuple[Op, int]]: ...
    def push(self, op: Op, arrays: Sequence[np.ndarray | None]) -> list[np.ndarray]: ...  # a shape node, executed on numbers
    def sizes_from(self, op: Op) -> Collection[Value]: ...  # of which tensors a reshape reads sizes at run time
    def size_at_runtime(self, value: Value, axis: int) -> Dim | None: ...  # an input's axis that is as long
    def position(self, value: Value) -> int: ...  # of the node that makes it
    def float_types(self) -> set[str]: ...  # of the values at run time: float32, float16, ...
    def input_sizes(self) -> Mapping[str, tuple[int | None, ...]]: ...  # None where free
    def totals(self) -> tuple[int, int]: ...  # MACs of one sample, parameters


Slopes = Callable[[Mapping[str, np.ndarray], int], Tensors]  # (feed, seed) -> (watched, gradients)


class Probe(Protocol):
    """Runs the graph as it was before any edit: (outputs, watched tensors). `nudges` are added to tensors before use."""

    def __call__(self, feed: Mapping[str, np.ndarray], nudges: Mapping[Value, np.ndarray] | None = None) -> Tensors: ...


class Runner(Reader, Protocol):
    """What it runs with is made for one run at a time, or for as many `lanes` beside each other."""

    @property
    def lanes(self) -> int: ...  # with which many inputs are through soonest

    def probe(self, watch: Sequence[Value], nudge: Sequence[Value] = (), lanes: int = 1) -> Probe: ...
    def stopwatch(self, block: Block) -> float: ...  # milliseconds of a block of these sizes, where the probe runs
    def begin(self, feed: Mapping[str, np.ndarray]) -> Live: ...  # what is alive before the first op
    def stages(self, cuts: Sequence[Value], lanes: int = 1) -> Iterator[Stage]: ...  # up to each of these, then to the outputs


@runtime_checkable
class Gradients(Protocol):
    def slopes(self, watch: Sequence[Value]) -> Slopes: ...


class Builder(Protocol):
    """Draws new nodes before an op, the same in both frameworks. Arrays that are not whole numbers take the stream's type."""

    drawn: list[Operand]

    def wide(self) -> Builder: ...  # one that computes in float32 at least: itself, if it does
    def again(self, op: Op, inputs: Sequence[Value | None]) -> Value: ...  # the same node, of other tensors
    def constant(self, numbers: np.ndarray) -> Value: ...
    def add(self, a: Value, b: Value | np.ndarray) -> Value: ...
    def sub(self, a: Value, b: Value | np.ndarray) -> Value: ...
    def mul(self, a: Value, b: Value | np.ndarray) -> Value: ...
    def div(self, a: Value, b: Value | np.ndarray) -> Value: ...
    def sqrt(self, x: Value) -> Value: ...
    def log(self, x: Value) -> Value: ...
    def abs(self, x: Value) -> Value: ...
    def softmax(self, x: Value) -> Value: ...  # over the last axis
    def sum(self, x: Value, axis: int) -> Value: ...  # over an axis, which goes
    def mean(self, x: Value, axis: int, keep: bool = False) -> Value: ...
    def matmul(self, a: Value, b: Value) -> Value: ...
    def transpose(self, x: Value, perm: Sequence[int]) -> Value: ...
    def reshape(self, x: Value, dims: Sequence[int | Dim]) -> Value: ...  # -1: what is left
    def unsqueeze(self, x: Value, axis: int) -> Value: ...
    def split(self, x: Value, sizes: Sequence[int]) -> list[Value]: ...  # along the last axis
    def take(self, x: Value, index: np.ndarray, axis: int) -> Value: ...  # fixed positions; a single one takes the axis with it
    def gather(self, x: Value, index: Value, axis: int) -> Value: ...  # the positions in a row of numbers, along an axis
    def gather_rows(self, table: Value | np.ndarray, index: Value) -> Value: ...  # y[b, n] = table[index[b, n]]
    def gather_along(self, x: Value, index: Value) -> Value: ...  # y[b, n] = x[b, index[b, n]]
    def gather_tokens(self, x: Value, index: Value) -> Value: ...  # y[b, n, :] = x[b, index[b, n], :]
    def gather_channels(self, x: Value, index: Value) -> Value: ...  # y[b, n, k] = x[b, n, index[b, k]]
    def topk(self, x: Value, count: int, axis: int) -> tuple[Value, Value]: ...  # the largest, and where they are
    def one_hot(self, index: Value, depth: int) -> Value: ...  # [b, depth]: 1 at the positions of index[b]
    def cumsum(self, x: Value) -> Value: ...  # sums up to each position of axis 1
    def equal(self, x: Value, numbers: np.ndarray) -> Value: ...  # 1.0 or 0.0
    def repeat(self, x: Value, like: Value) -> Value: ...  # four axes: along the first, until it is as long as `like`
    def cast(self, x: Value) -> Value: ...  # to the stream's type
    def attend(self, qkv: Sequence[Value], bias: Value | None, heads: int, scale: float) -> Value: ...  # one node, on rows
    def name(self, x: Value, name: str) -> None: ...  # so that a proof finds it


class Editor(Reader, Protocol):
    def builder(self, before: Op, like: Value | None = None) -> Builder: ...
    def operand(self, op: Op, slot: int) -> Value: ...  # as it is now: `op.inputs` are those that were read
    def set_constant(self, op: Op, slot: int, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None: ...
    def replace(self, old: Value, new: Value) -> None: ...
    def redirect(self, op: Op, slot: int, value: Value) -> None: ...
    def rewire(self, value: Value, made: Value, but: Sequence[Operand]) -> None: ...  # all other nodes see `made` instead
    def resize(self, op: Op, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> None: ...
    def insert_bias(self, op: Op) -> tuple[Op, int]: ...  # a bias of zeros behind a linear that has none
    def set_attention(self, op: Op, heads: int, kv_heads: int, scale: Operand) -> None: ...
    def add_to_scores(self, op: Op, plus: Value) -> None: ...  # [.., queries, keys]
    def add_input(self, name: str, count: int, like: Value | None = None) -> Value: ...  # positions [images of `like`, count]
    def pick_output(self, value: Value, axis: int, index: np.ndarray | Value) -> None: ...  # these positions, behind the last op
    def without_idle_masks(self) -> Self: ...  # attention masks that forbid nothing are dropped
    def reopened(self) -> Self: ...  # the edited graph, looked at afresh
    def finish(self) -> None: ...


@runtime_checkable
class Quantizer(Protocol):
    def quantize(self, op: Op, read: tuple[float, int, int], weight: np.ndarray, scales: np.ndarray) -> None: ...  # a linear


class Graph(Runner, Editor, Protocol):
    """All that every adapter can do."""


def is_pointwise(graph: Reader, op: Op) -> bool:
    """Does a linear read one place at a time: is it no convolution, or one with a window of 1?"""
    shape = graph.shape(op.inputs[1])
    return math.prod(shape) == shape[op.weight_axes[0]] * shape[op.weight_axes[1]]


def bias_of(graph: Reader, op: Op) -> tuple[Op, int] | None:
    """The operand that is added, channel by channel, to what a linear puts out; None if there is none."""
    out = op.outputs[0]
    if len(op.inputs) > 2 and op.inputs[2] is not None:
        return (op, 2) if graph.is_constant(op.inputs[2]) else None
    users = graph.users(out)
    if len(users) != 1 or out in graph.outputs:
        return None
    add, own = users[0]
    if Role.SKIP_NORM in add.role and own < 2 and len(add.inputs) > 4 and add.inputs[4] is not None:
        return (add, 4) if graph.is_constant(add.inputs[4]) else None
    if Role.ADD not in add.role or len(add.inputs) < 2:
        return None
    other = add.inputs[1 - own]
    shape = graph.shape(other) if other is not None and graph.is_constant(other) else ()
    width = graph.shape(out)[-1]
    return (add, 1 - own) if len(shape) and shape[-1] == width and math.prod(shape) == width else None
