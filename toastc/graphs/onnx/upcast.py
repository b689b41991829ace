"""bfloat16 graphs as float32 ones, for runtimes whose CPU kernels know no bfloat16."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

FROM, TO = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def has_bfloat16(model: ir.Model) -> bool:
    return any(v.const_value is not None and v.const_value.dtype == FROM for v in model.graph.initializers.values())


def upcast(model: ir.Model) -> ir.Model:
    """In place: the numbers stay the bfloat16 ones, the arithmetic becomes float32."""
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == FROM:
            value.const_value = widened(value.const_value)
            value.type = ir.TensorType(TO)
    for value in (*model.graph.inputs, *model.graph.outputs, *(v for n in model.graph for v in n.outputs)):
        if value.dtype == FROM:
            value.type = ir.TensorType(TO)  # clones share their types
    for node in model.graph:
        kind = node.attributes.get("to")
        if node.op_type == "Cast" and kind is not None and kind.as_int() == int(FROM):
            node.attributes["to"] = ir.AttrInt64("to", int(TO))
    return model


def widened(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    def evaluate() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    return ir.LazyTensor(evaluate, dtype=TO, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)
