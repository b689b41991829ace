"""What the walk through a graph writes down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toastc.graphs import Op


@dataclass(frozen=True, eq=False)
class Source:
    """Positions of operand `slot` of `op`, flattened over `axes`, and the channel each one carries."""

    op: Op
    slot: int
    axes: tuple[int, ...]
    ids: np.ndarray
    role: str  # "in": a linear's rows; "with": a constant that meets the channels; "out": a consumer's columns


@dataclass(frozen=True, eq=False)
class Contraction:
    """Q.K': `q`, `k` [groups, width]; `heads` [groups] are the numbers its output carries for its groups."""

    op: Op
    q: np.ndarray
    k: np.ndarray
    heads: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Mix:
    """P.V: `value` [groups, width] and the heads P carries, [groups] or None."""

    op: Op
    slot: int  # the slot of P
    value: np.ndarray
    heads: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Sum:
    """One over the channels of each head: `heads` [groups] are the numbers its output carries, `rows` [groups, width]."""

    op: Op
    heads: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class Pin:
    op: Op | None
    ids: np.ndarray
    reason: str
