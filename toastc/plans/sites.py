"""The four small nouns the project is made of. They know numpy and nothing else.

A *coupling* is a set of weights that share one inner axis nobody outside can see:

    block      coupling   members                                   inner width
    attention  qk         rows of W_q, b_q, W_k, b_k                head_dim, per head
    attention  vo         rows of W_v, b_v; columns of W_proj       head_dim, per head
    FFN        hidden     rows of fc1 (and of the gate); columns of fc2    mlp width
    FFN        inputs     columns of fc1 (and of the gate)                 model width; cut only on request

Channels are numbered `group * width + position`; a whole head is a group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Member:
    """One weight and one axis of it: `index[groups, width]` is each channel's position on that axis.

    A weight whose heads and channels stand on axes of their own has two `axes`, and positions are flattened.
    `role` says which side of the coupling it is (`q`, `k`, `v`, `in`, `out`); `operand` is the graph's
    own handle of the weight. A channel with several rows in one weight (a rotary pair, a key shared by
    several queries) has several members that differ in `index` alone.
    """

    weight: str
    role: str
    axes: tuple[int, ...]
    index: np.ndarray
    operand: Any = None


@dataclass(frozen=True, eq=False)
class Coupling:
    """`groups x width` channels that are kept or removed together. An empty `reason` means prunable."""

    name: str
    groups: int
    width: int
    members: tuple[Member, ...]
    reason: str = ""
    rotatable: bool = False  # nothing but scalars between producer and consumer: a change of basis is allowed
    channel_macs: int = 0  # what one channel costs, in one sample
    channel_params: int = 0
    read_macs: int = 0  # of channel_macs, what the linears spend that read the channel
    classes: np.ndarray | None = field(default=None, repr=False)  # the matcher's own numbers of the channels
    beside: tuple[Any, ...] = field(default=(), repr=False)  # other products that queries and keys go into (positions)

    @property
    def prunable(self) -> bool:
        return not self.reason

    @property
    def consumed(self) -> bool:
        """Does a linear take its channels, so that what is lost can be made up for?"""
        return any(m.role == "out" for m in self.members)


@dataclass(frozen=True)
class Shared:
    """A weight whose rows are one coupling's and whose columns another's: what both are said to save of it, for each pair of a
    channel here and one there that go.
    """

    own: str  # of the site's couplings
    other: str  # `site.coupling`
    macs: int
    params: int


@dataclass(frozen=True)
class Reject:
    """Something that looked like a site, or a coupling of one, and cannot be shrunk."""

    node: str
    reason: str


@dataclass(frozen=True, eq=False)
class Site:
    """One attention or one FFN.

    `heads` (attention only) is the coupling of whole heads: one group, one channel a head. Its members
    are what else carries a head axis (a position bias); the rows themselves are those of qk and vo.
    `macs` counts the linears and the two attention products of one sample.
    """

    name: str
    kind: str  # "attention" | "ffn"
    couplings: tuple[Coupling, ...]
    macs: int
    params: int
    head_count: int = 0
    head_dim: int = 0
    v_head_dim: int = 0
    hidden: int = 0
    heads: Coupling | None = None
    inputs: Coupling | None = None  # of an FFN: what its first linear reads of the residual stream
    scale: float | None = None
    tokens: tuple[int, int] = (0, 0)  # query and key tokens of one sample
    wiring: Any = field(default=None, repr=False)
    shared: tuple[Shared, ...] = field(default=(), repr=False)

    def coupling(self, name: str) -> Coupling | None:
        return next((c for c in self.every if c.name == name), None)

    @property
    def every(self) -> tuple[Coupling, ...]:
        return (*self.couplings, *(c for c in (self.heads, self.inputs) if c is not None))
