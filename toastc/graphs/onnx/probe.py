"""Running an ONNX graph with its inner tensors in view: watched as outputs, nudged by what is added to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from .. import Tensors, Value

NUDGE = "toastc_nudge_"


class OnnxProbe:
    """`probe(feed)`: the model's outputs and the watched tensors. `nudges[value]` is added to a tensor before use."""

    def __init__(
        self, model: ir.Model, dtypes: Mapping[Any, int], watch: Sequence[Value], nudge: Sequence[Value], provider: str
    ) -> None:
        from ...runtimes import ort

        self.watch, self.nudge = list(watch), list(nudge)
        self.dtypes = dtypes
        proto = ir.to_proto(model)
        names = [v.name for v in self.watch]  # type: ignore[attr-defined]
        for value in self.nudge:
            add_nudge(proto.graph, str(value.name), dtypes[value])  # type: ignore[attr-defined]
        self.outputs = [o.name for o in proto.graph.output]
        self.extra = [n for n in dict.fromkeys(names) if n not in self.outputs]
        for name in self.extra:
            proto.graph.output.add().name = name
        folder = next((Path(t.path).parent for t in external(model)), None)
        session = ort.session_of(proto.SerializeToString(), folder, provider)
        self.run = lambda given: ort.run_session(session, "the model", given, [*self.outputs, *self.extra])

    def __call__(self, feed: Mapping[str, np.ndarray], nudges: Mapping[Any, np.ndarray] | None = None) -> Tensors:
        given = dict(feed)
        for value in self.nudge:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(self.dtypes[value])
            given[NUDGE + str(value.name)] = (nudges or {}).get(value, np.zeros((), dtype)).astype(dtype, copy=False)  # type: ignore[attr-defined]
        made = dict(zip([*self.outputs, *self.extra], self.run(given), strict=True))
        return [made[n] for n in self.outputs], [made[v.name] for v in self.watch]  # type: ignore[attr-defined]


def add_nudge(graph: onnx.GraphProto, name: str, dtype: int) -> None:
    moved = f"{name}_nudged"
    for node in graph.node:
        for i, given in enumerate(node.input):
            if given == name:
                node.input[i] = moved
    graph.input.append(onnx.helper.make_tensor_value_info(NUDGE + name, dtype, None))
    at = next((i for i, node in enumerate(graph.node) if name in node.output), -1)
    graph.node.insert(at + 1, onnx.helper.make_node("Add", [name, NUDGE + name], [moved]))


def external(model: ir.Model) -> list[ir.ExternalTensor]:
    return [v.const_value for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)]
