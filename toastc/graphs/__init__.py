"""What the compiler asks of a graph, whatever framework it came from.

An adapter reads its graph into a topological list of `Op`s, a neutral view in which each node is one of eight kinds and may
play some roles. Matching reads the ops and pushes labels through them; shrinking edits the graph. What may be asked of a graph
stands in `protocols`. Passes see graphs through them; only the proof opens a framework.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum, Flag, auto

from ..system.vocabulary import Operand

Value = Hashable  # the framework's own handle of a tensor
Tensors = tuple[list[Operand], list[Operand]]  # outputs, and what was watched
Live = dict[Operand, Operand]  # the tensors alive between two ops, by their value
Stage = Callable[[Live], Live]  # a stretch of the graph: what is alive behind it, from what is alive before it


class Kind(Enum):
    LINEAR = auto()  # a weight contracts `axis`, in a convolution at every place of its window; `weight_axes` = (in, out)
    PRODUCT = auto()  # two tensors are multiplied and summed over an axis; `spec` is its equation
    ATTENTION = auto()  # softmax(QK')V as one node; `attention` says how its tensors are laid out
    SHAPE = auto()  # moves elements about and changes none; `push` executes it
    ELEMENTWISE = auto()  # element by element, operands broadcast; `effect` says how
    CHANNELWISE = auto()  # what stands on `axis` each by itself, by numbers of its own, other axes mixed: a depthwise convolution
    REDUCE = auto()  # ties the elements along `axes` together: softmax, norms, sums
    OPAQUE = auto()  # anything else


class Role(Flag):
    """What passes look for in an operator besides its kind. They never ask for its name, which every framework has its own of."""

    NONE = 0
    SAME = auto()  # hands its input on, perhaps in another type
    CAST = auto()
    ADD = auto()
    MULTIPLY = auto()
    DIVIDE = auto()  # the first operand by the second
    INVERT = auto()  # divides by its operand
    POSITIVE = auto()  # never nothing, not even of 0
    BOUND = auto()  # with a number, keeps its operand from being 0
    WHERE = auto()
    IS_NAN = auto()
    SUM = auto()  # a sum or a mean: what is linear among the reductions
    MEAN = auto()
    LENGTH = auto()  # zeros more or less do not change it, nor what it makes of the others
    ZERO = auto()  # nothing where its operand is nothing
    SOFTMAX = auto()
    NORM = auto()  # a scale and a shift for every channel at the end: (x, scale, shift)
    SKIP_NORM = auto()  # a sum and a norm in one: (x, skip, scale, shift, bias)
    EXPAND = auto()  # repeats its input along axes
    CONVOLUTION = auto()
    CONVOLUTION_BACK = auto()  # transposed
    ATTENTION = auto()  # an attention as one node, whether it is understood or not
    PLAIN_ATTENTION = auto()  # ONNX's own: runtimes would rather have theirs


@dataclass(frozen=True)
class AttentionSpec:
    """Layouts are `bhnd`, `bnhd` or `bn(hd)`; `bias` is the slot of a [q|k|v] bias, -1 if none."""

    heads: int
    kv_heads: int
    layouts: tuple[str, str, str, str]  # of q, k, v and the output
    scale: Operand  # a number; under torch.compile perhaps the node of one that is only known at run time
    masks: tuple[int, ...] = ()
    bias: int = -1
    more: str = ""  # what it does besides a scale and a mask that is added


@dataclass(frozen=True)
class Norm:
    """(x, scale, shift): x, less its mean where it is `centred`, over the root of its mean square and `eps`."""

    eps: Operand  # a number, or the node of one that is only known at run time
    centred: bool


@dataclass(frozen=True)
class Guide:
    """Where the class token's attention can be read: `slot` of P in the product of P and V, or -1 of a whole attention."""

    op: Op
    slot: int


@dataclass(eq=False)
class Op:
    kind: Kind
    type: str  # the framework's word for it, for messages
    name: str
    path: str  # module path if the graph tells, else ""
    inputs: list[Value | None]
    outputs: list[Value | None]
    node: Operand
    role: Role = Role.NONE
    factor: float | None = None  # multiplies by this number, which is no operand; an ELEMENTWISE does nothing else
    effect: str = "nonlinear"  # ELEMENTWISE, CHANNELWISE: "linear", "affine" or "nonlinear"
    axis: int = -1  # LINEAR, CHANNELWISE: where channels stand, in what is read and in what is made
    axes: tuple[int, ...] = ()  # REDUCE, of the first input; empty means all
    norm: Norm | None = None  # REDUCE, where it is one as a whole
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


def lone_shape(op: Op) -> bool:
    """A shape node of one tensor."""
    return op.kind is Kind.SHAPE and sum(v is not None for v in op.inputs) == 1


def one_of_one(op: Op) -> bool:
    """A shape node that makes one tensor of one."""
    return lone_shape(op) and len(op.outputs) == 1


def wiring(ops: Iterable[Op]) -> tuple[dict[Value, Op], dict[Value, list[tuple[Op, int]]]]:
    """Who makes each value, and who reads it at which place."""
    producers: dict[Value, Op] = {}
    users: dict[Value, list[tuple[Op, int]]] = {}
    for op in ops:
        producers |= {value: op for value in op.outputs if value is not None}
        for slot, value in enumerate(op.inputs):
            if value is not None:
                users.setdefault(value, []).append((op, slot))
    return producers, users
