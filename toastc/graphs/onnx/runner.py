"""An ONNX graph, run: tensors in view, stretches of it, blocks against the clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...plans.latency import Block
from ...system.cores import LANES
from .. import Live, Stage, Value
from . import session
from .blocks import block_model
from .facts import runtime_inputs
from .probe import OnnxProbe, kinds_of, typed
from .reader import OnnxReader
from .stages import stages


class OnnxRunner(OnnxReader):
    @property
    def lanes(self) -> int:
        return LANES if self.provider == "cpu" else 1

    def probe(self, watch: Sequence[Value], nudge: Sequence[Value] = (), lanes: int = 1) -> OnnxProbe:
        return OnnxProbe(self.model, self.facts.dtypes, watch, nudge, self.provider, lanes)

    def stopwatch(self, block: Block) -> float:
        return session.milliseconds(*block_model(block), self.provider)

    def begin(self, feed: Mapping[str, np.ndarray]) -> Live:
        kinds = {name: np.float32 if kind.name == "bfloat16" else kind for name, kind in kinds_of(self.model).items()}
        given = typed(feed, kinds)
        return {value: given[str(value.name)] for value in runtime_inputs(self.model)}

    def stages(self, cuts: Sequence[Value], lanes: int = 1) -> Iterator[Stage]:
        return stages(self.model, self.facts.dtypes, cuts, self.provider, lanes)
