"""What the compiler asks of a graph, whatever framework it came from.

An adapter reads its graph into a topological list of `Op`s, a neutral view in which each node is one of
seven kinds. Matching reads the ops and pushes labels through them; shrinking edits the graph through the
few verbs at the end of the protocol. Nothing else in the project touches torch.fx or ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

import numpy as np

from ..plans.latency import Block

SKIP_NORMS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")  # (x, skip, gamma, beta, bias)
Value = Hashable  # the framework's own handle of a tensor
Tensors = tuple[list[Any], list[Any]]  # outputs, and what was watched
Live = dict[Any, Any]  # the tensors alive between two ops, by their value
Stage = Callable[[Live], Live]  # a stretch of the graph: what is alive behind it, from what is alive before it


class Kind(Enum):
    LINEAR = auto()  # a 2-D weight contracts the last axis; `weight_axes` = (in, out)
    PRODUCT = auto()  # two tensors are multiplied and summed over an axis; `spec` is its equation
    ATTENTION = auto()  # softmax(QK')V as one node; `attention` says how its tensors are laid out
    SHAPE = auto()  # moves elements about and changes none; `Graph.push` executes it
    ELEMENTWISE = auto()  # element by element, operands broadcast; `effect` says how
    REDUCE = auto()  # ties the elements along `axes` together: softmax, norms, sums
    OPAQUE = auto()  # anything else


@dataclass(frozen=True)
class AttentionSpec:
    """Layouts are `bhnd`, `bnhd` or `bn(hd)`; `bias` is the slot of a [q|k|v] bias, -1 if none."""

    heads: int
    kv_heads: int
    layouts: tuple[str, str, str, str]  # of q, k, v and the output
    scale: Any  # a number; under torch.compile perhaps the node of one that is only known at run time
    masks: tuple[int, ...] = ()
    bias: int = -1
    more: str = ""  # what it does besides a scale and a mask that is added


@dataclass(frozen=True)
class Guide:
    """Where the class token's attention can be read: `slot` of P in the product of P and V, or -1 of a whole attention."""

    op: Op
    slot: int


@dataclass(frozen=True)
class Selection:
    """Which channels of its input a linear reads, chosen at run time; the words are those of `choices.Select`."""

    name: str
    count: int
    per: str
    tokens: tuple[int, ...]
    weights: tuple[float, float]
    guide: Guide | None = None


@dataclass(eq=False)
class Op:
    kind: Kind
    type: str  # the framework's word for it, for messages
    name: str
    path: str  # module path if the graph tells, else ""
    inputs: list[Value | None]
    outputs: list[Value | None]
    node: Any
    factor: float | None = None  # multiplies by this number, which is no operand; an ELEMENTWISE does nothing else
    effect: str = "nonlinear"  # ELEMENTWISE: "linear", "affine" or "nonlinear"
    axes: tuple[int, ...] = ()  # REDUCE, of the first input; empty means all
    spec: tuple[str, str, str] = ("", "", "")  # PRODUCT
    weight_axes: tuple[int, int] = (0, 1)  # LINEAR
    attention: AttentionSpec | None = None
    macs: int = field(default=0)  # of one sample
    why: str = "is not understood"  # OPAQUE

    def __str__(self) -> str:
        return f"{self.name} ({self.type})" if self.name else self.type


@dataclass(frozen=True)
class Dim:
    """A size taken at run time from axis `axis` of the value being reshaped, or of another value."""

    axis: int
    of: Value | None = None


class Probe(Protocol):
    """Runs the graph as it was before any edit: (outputs, watched tensors). `nudges` are added to tensors before use."""

    def __call__(self, feed: Mapping[str, np.ndarray], nudges: Mapping[Value, np.ndarray] | None = None) -> Tensors: ...


class Pen(Protocol):
    """Draws new nodes before an op, the same in both frameworks. Arrays that are not whole numbers take the stream's type."""

    drawn: list[Any]

    def number(self, numbers: np.ndarray) -> Value: ...
    def math(self, kind: str, a: Value, b: Value | np.ndarray) -> Value: ...  # add, sub, mul, div
    def root(self, x: Value) -> Value: ...
    def log(self, x: Value) -> Value: ...
    def total(self, x: Value, axis: int) -> Value: ...  # the sum over an axis, which goes
    def product(self, a: Value, b: Value) -> Value: ...
    def turn(self, x: Value, perm: Sequence[int]) -> Value: ...
    def fold(self, x: Value, dims: Sequence[int]) -> Value: ...  # to these sizes; 0 is the size there was
    def widen(self, x: Value, axis: int) -> Value: ...
    def take(self, x: Value, index: np.ndarray, axis: int) -> Value: ...
    def along(self, x: Value, index: Value) -> Value: ...  # y[b, n] = x[b, index[b, n]]
    def look_up(self, table: np.ndarray, index: Value) -> Value: ...  # y[b, n] = table[index[b, n]]
    def spread(self, x: Value, index: Value) -> Value: ...  # y[b, n, :] = x[b, index[b, n], :]
    def best(self, x: Value, count: int) -> tuple[Value, Value]: ...  # the largest along axis 1, and where they are
    def flags(self, index: Value, depth: int) -> Value: ...  # [b, depth]: 1 at the positions of index[b]
    def running(self, x: Value) -> Value: ...  # sums up to each position of axis 1
    def where_equal(self, x: Value, numbers: np.ndarray) -> Value: ...  # 1.0 or 0.0
    def repeated(self, x: Value, like: Value) -> Value: ...  # four axes: along the first, until it is as long as `like`
    def as_real(self, x: Value) -> Value: ...  # of the stream's type
    def named(self, x: Value, name: str) -> None: ...  # so that a proof finds it


class Graph(Protocol):
    ops: list[Op]
    outputs: frozenset[Any]
    batch: int  # of the shapes

    # reading
    def shape(self, value: Value) -> tuple[int, ...]: ...
    def is_constant(self, value: Value) -> bool: ...
    def constant(self, value: Value) -> np.ndarray: ...
    def identity(self, value: Value) -> Hashable: ...  # the same for two constants that are one tensor
    def constant_name(self, op: Op, slot: int) -> str: ...
    def producer(self, value: Value) -> Op | None: ...
    def users(self, value: Value) -> Sequence[tuple[Op, int]]: ...
    def push(self, op: Op, arrays: Sequence[np.ndarray | None]) -> list[np.ndarray]: ...
    def varies(self, value: Value) -> tuple[bool, ...]: ...  # per axis: is the size only known at run time

    def sizes_from(self, op: Op) -> Collection[Value]: ...  # of which tensors a reshape reads sizes at run time
    def size_at_runtime(self, value: Value, axis: int) -> Dim | None: ...  # an input's axis that is as long

    def input_sizes(self) -> Mapping[str, tuple[int | None, ...]]: ...  # None where free
    def probe(self, watch: Sequence[Value], nudge: Sequence[Value] = ()) -> Probe: ...
    def slopes(self, watch: Sequence[Value]) -> Any: ...  # (feed, seed) -> (watched, gradients), where there are any
    def stopwatch(self, block: Block) -> float: ...  # milliseconds of a block of these sizes, where the probe runs
    def begin(self, feed: Mapping[str, np.ndarray]) -> Live: ...  # what is alive before the first op
    def position(self, value: Value) -> int: ...  # of the node that makes it
    def stages(self, cuts: Sequence[Value]) -> Iterator[Stage]: ...  # up to each of these values, in order; last to the outputs

    def totals(self) -> tuple[int, int]: ...  # MACs of one sample, parameters

    # writing
    def set_constant(self, op: Op, slot: int, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None: ...
    def split(self, value: Value, sizes: Sequence[int], like: Op) -> list[Value]: ...
    def reshape(self, value: Value, dims: Sequence[int | Dim], shape: Sequence[int], like: Op) -> Value: ...
    def transpose(self, value: Value, perm: Sequence[int], like: Op) -> Value: ...
    def replace(self, old: Value, new: Value) -> None: ...
    def redirect(self, op: Op, slot: int, value: Value) -> None: ...
    def resize(self, op: Op, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> None: ...
    def insert_bias(self, op: Op) -> tuple[Op, int]: ...  # a bias of zeros behind a linear that has none
    def take(self, ops: Sequence[Op], index: np.ndarray) -> None: ...  # linears of one input read these positions of it
    def select(self, op: Op, selection: Selection) -> Value: ...  # a linear reads what is chosen; which: [images or 1, count]
    def mask(self, op: Op, slot: int, chosen: Value) -> None: ...  # zeroes the channels of an operand that are not chosen
    def chosen(self, name: str, count: int) -> Value: ...  # a new input: what a selection of that name chose
    def pick(self, value: Value, axis: int, index: np.ndarray, like: Op) -> Value: ...  # these positions, before an op
    def pick_output(self, value: Value, axis: int, index: np.ndarray | Value) -> None: ...  # the same, behind the last op
    def weigh_keys(self, op: Op, plus: Value) -> None: ...  # [.., queries, keys], added to the logits
    def pen(self, before: Op, like: Value) -> Pen: ...
    def rewire(self, value: Value, made: Value, but: Sequence[Any]) -> None: ...  # all other nodes see `made` instead
    def given(self, name: str, like: Value, count: int) -> Value: ...  # a new input: a choice [images, count] made elsewhere
    def without_idle_masks(self) -> Graph: ...  # attention masks that forbid nothing are dropped
    def reopened(self) -> Graph: ...  # the edited graph, looked at afresh
    def attend(self, qkv: Sequence[Value], bias: Value | None, heads: int, scale: float, like: Op) -> Value: ...  # on rows
    def quantize(self, op: Op, read: tuple[float, int, int], weight: np.ndarray, scales: np.ndarray) -> None: ...  # a linear
    def set_attention(self, op: Op, heads: int, kv_heads: int, scale: Any) -> None: ...
    def finish(self) -> None: ...


def lone_shape(op: Op) -> bool:
    """A shape node of one tensor."""
    return op.kind is Kind.SHAPE and sum(v is not None for v in op.inputs) == 1


def one_of_one(op: Op) -> bool:
    """A shape node that makes one tensor of one."""
    return lone_shape(op) and len(op.outputs) == 1


def bias_of(graph: Graph, op: Op) -> tuple[Op, int] | None:
    """The operand that is added, channel by channel, to what a linear puts out; None if there is none."""
    out = op.outputs[0]
    if len(op.inputs) > 2 and op.inputs[2] is not None:
        return (op, 2) if graph.is_constant(op.inputs[2]) else None
    users = graph.users(out)
    if len(users) != 1 or out in graph.outputs:
        return None
    add, own = users[0]
    if add.type in SKIP_NORMS and own < 2 and len(add.inputs) > 4 and add.inputs[4] is not None:
        return (add, 4) if graph.is_constant(add.inputs[4]) else None
    if add.type not in ("Add", "add"):
        return None
    other = add.inputs[1 - own]
    shape = graph.shape(other) if other is not None and graph.is_constant(other) else ()
    width = graph.shape(out)[-1]
    return (add, 1 - own) if len(shape) and shape[-1] == width and math.prod(shape) == width else None
