"""Running side of the ONNX adapter: tensors in view, stretches of the graph, blocks against the clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...plans.latency import Block
from ...system.errors import ToastcError
from .. import Live, Stage, Value
from . import facts as facts_of
from .blocks import block_model
from .probe import OnnxProbe, kinds_of, typed
from .stages import stages


class OnnxRuns:
    model: ir.Model
    facts: facts_of.Facts
    provider: str
    _order: dict[ir.Node, int]

    def probe(self, watch: Sequence[Value], nudge: Sequence[Value] = ()) -> OnnxProbe:
        return OnnxProbe(self.model, self.facts.dtypes, watch, nudge, self.provider)

    def slopes(self, watch: Sequence[Value]) -> Any:
        raise ToastcError("an ONNX file has no gradients; give the torch module, or take another score")

    def stopwatch(self, block: Block) -> float:
        from . import session as ort

        return ort.milliseconds(*block_model(block), self.provider)

    def begin(self, feed: Mapping[str, np.ndarray]) -> Live:
        kinds = {name: np.float32 if kind.name == "bfloat16" else kind for name, kind in kinds_of(self.model).items()}
        given = typed(feed, kinds)
        return {value: given[str(value.name)] for value in facts_of.runtime_inputs(self.model)}

    def position(self, value: Any) -> int:
        return self._order[value.producer()]

    def stages(self, cuts: Sequence[Value]) -> Iterator[Stage]:
        return stages(self.model, self.facts.dtypes, cuts, self.provider)
