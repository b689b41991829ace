"""An fx graph, run: tensors in view, stretches of it, blocks against the clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from ...plans.latency import Block
from ...system.vocabulary import Operand
from .. import Live, Stage, Value
from .blocks import block_function, milliseconds
from .probe import FxProbe, FxSlopes, placed
from .reader import FxReader
from .stages import stages


class FxRunner(FxReader):
    lanes = 1  # torch shares the cores out by itself

    def probe(self, watch: Sequence[Value], nudge: Sequence[Value] = (), lanes: int = 1) -> FxProbe:
        return FxProbe(self.gm, self.inputs, watch)

    def slopes(self, watch: Sequence[Value]) -> Operand:
        return FxSlopes(self.gm, self.inputs, watch).slopes

    def stopwatch(self, block: Block) -> float:
        like = next((t for t in self.gm.parameters() if t.is_floating_point()), torch.zeros(()))
        return milliseconds(block_function(block, like), like)

    def begin(self, feed: Mapping[str, np.ndarray]) -> Live:
        return placed(self.gm, self.inputs, feed)

    def stages(self, cuts: Sequence[Value], lanes: int = 1) -> Iterator[Stage]:
        return stages(self.gm, cuts)
