"""Running an ONNX graph with its inner tensors in view: watched as outputs, nudged by what is added to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from ...system.vocabulary import Json, Operand, Read
from .. import Tensors, Value
from .bound import running
from .session import session_of
from .upcast import has_bfloat16, upcast
from .weights import folder_of, without_weights

NUDGE = "toastc_nudge_"


class OnnxProbe:
    """`probe(feed)`: the model's outputs and the watched tensors. `nudges[value]` is added to a tensor before use."""

    def __init__(
        self,
        model: ir.Model,
        dtypes: Mapping[Value, int],
        watch: Sequence[Value],
        nudge: Sequence[Value],
        provider: str,
        lanes: int = 1,
    ) -> None:
        self.watch: list[Operand] = list(watch)
        self.nudge: list[Operand] = list(nudge)
        model = runnable(model)
        self.kinds = kinds_of(model)
        proto, self.weights = without_weights(model)
        names = [v.name for v in self.watch]
        self.types = {str(v.name): runnable_type(dtypes[v]) for v in self.nudge}
        for name, kind in self.types.items():
            add_nudge(proto.graph, name, kind)
        self.outputs = [o.name for o in proto.graph.output]
        self.extra = [n for n in dict.fromkeys(names) if n not in self.outputs]
        for name in self.extra:
            proto.graph.output.add().name = name
        made = session_of(proto.SerializeToString(), folder_of(model), provider, self.weights, True, lanes)
        self.run = running(made, provider)

    def __call__(self, feed: Mapping[str, np.ndarray], nudges: Mapping[Value, np.ndarray] | None = None) -> Tensors:
        given = typed(feed, self.kinds)
        for value in self.nudge:
            name = str(value.name)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(self.types[name])
            given[NUDGE + name] = (nudges or {}).get(value, np.zeros((), dtype)).astype(dtype, copy=False)
        wanted = [*self.outputs, *self.extra]
        made = dict(zip(wanted, self.run(given, wanted), strict=True))
        return [made[n] for n in self.outputs], [made[v.name] for v in self.watch]


def runnable(model: ir.Model) -> ir.Model:
    """CPU kernels know no bfloat16: such a model is watched in float32."""
    return upcast(model.clone()) if has_bfloat16(model) else model


def runnable_type(kind: int) -> int:
    return onnx.TensorProto.FLOAT if kind == onnx.TensorProto.BFLOAT16 else kind


def kinds_of(model: ir.Model) -> Json:
    return {str(v.name): v.dtype.numpy() for v in model.graph.inputs if v.dtype is not None}


def typed(feed: Mapping[str, np.ndarray], kinds: Read) -> dict[str, np.ndarray]:
    """Numbers as the model takes them: calibration data is float32 whatever the model is."""
    return {name: array.astype(kinds.get(name, array.dtype), copy=False) for name, array in feed.items()}


def add_nudge(graph: onnx.GraphProto, name: str, dtype: int) -> None:
    moved = f"{name}_nudged"
    for node in graph.node:
        for i, given in enumerate(node.input):
            if given == name:
                node.input[i] = moved
    graph.input.append(onnx.helper.make_tensor_value_info(NUDGE + name, dtype, None))
    at = next((i for i, node in enumerate(graph.node) if name in node.output), -1)
    graph.node.insert(at + 1, onnx.helper.make_node("Add", [name, NUDGE + name], [moved]))
