"""A model without its weights, which a runtime is handed as they are: written into the model, each would be there three times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

LIGHT = 1 << 12  # bytes that may stay in the model
HANDED = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE}


def without_weights(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The model, whose large weights are said to be elsewhere, and those weights; what is in files stays there."""
    weights: dict[str, np.ndarray] = {}
    kept: dict[str, ir.TensorProtocol] = {}
    initializers = model.graph.initializers
    try:
        for name, value in initializers.items():
            tensor = value.const_value
            if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.dtype not in HANDED or tensor.nbytes < LIGHT:
                continue
            weights[name], kept[name] = np.ascontiguousarray(tensor.numpy()), tensor
            value.const_value = ir.ExternalTensor(
                "handed", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(weights[name].shape), name=name
            )
        return ir.to_proto(model), weights
    finally:
        for name, tensor in kept.items():
            initializers[name].const_value = tensor


def folder_of(model: ir.Model) -> Path | None:
    """Where the weights are that are in files."""
    found = (value.const_value for value in model.graph.initializers.values())
    return next((Path(tensor.path).parent for tensor in found if isinstance(tensor, ir.ExternalTensor)), None)
