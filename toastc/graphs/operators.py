"""A row of an adapter's table of operators: all that the compiler knows of one.

    OPERATORS["hardswish"] = Operator(Kind.ELEMENTWISE)

A name may stand for several things (a matrix product by a constant is a linear): `refine` looks at the node. A shape node that
stays in a graph whose sizes change is given new ones by `resize`; without it, it must come out right by itself, or becomes a
node that picks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..system.vocabulary import Operand
from . import Kind, Norm, Role


@dataclass(frozen=True)
class Operator:
    kind: Kind
    effect: str = "nonlinear"  # ELEMENTWISE
    role: Role = Role.NONE
    refine: Callable[..., Kind] | None = None  # of a node, which operands are constant, and their shapes
    axes: Callable[..., tuple[int, ...]] | None = None  # REDUCE: of a node and the rank of its input
    norm: Callable[..., Norm | None] | None = None  # REDUCE: of a node
    resize: Callable[..., None] | None = None  # SHAPE: of a graph, its nodes, an op, and what is left before and behind it
    sizes: bool = False  # SHAPE: it is given sizes, which may be read from tensors at run time


def convolution(groups: int, weight: Sequence[int]) -> Kind:
    """Of a weight [out, in of a group, *window]: all channels together, or each by itself."""
    if groups == 1 < weight[1]:
        return Kind.LINEAR
    return Kind.CHANNELWISE if weight[1] == 1 and weight[0] == groups else Kind.OPAQUE


def rows(kind: Kind, names: str, **of_all: Operand) -> dict[str, Operator]:
    """Operators that are alike in all but their name."""
    return {name: Operator(kind, **of_all) for name in names.split()}
