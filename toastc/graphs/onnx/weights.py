"""Where weights are: apart from the message they were read from, and handed to a runtime as they are, outside of the model. Else
each would be in memory several times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
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


def tensors_of(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor the file speaks of: weights and constants, of the graph, its branches and its functions."""
    return (tensor for tensor, _ in places_of(model))


def replace_tensors(model: ir.Model, by: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> None:
    for tensor, put in places_of(model):
        put(by(tensor))


def places_of(model: ir.Model) -> Iterator[tuple[ir.TensorProtocol, Callable[[ir.TensorProtocol], None]]]:
    """Each tensor, and what puts another one there."""
    for graph in (*model.graphs(), *model.functions.values()):
        for value in getattr(graph, "initializers", {}).values():
            if value.const_value is not None:
                yield value.const_value, partial(setattr, value, "const_value")
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.value, partial(put_attribute, node, name)


def put_attribute(node: ir.Node, name: str, tensor: ir.TensorProtocol) -> None:
    node.attributes[name] = ir.AttrTensor(name, tensor)


def by_itself(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The same; not a part of the file's message, all of which stays in memory as long as any part is read; and where it is in
    a file of its own, at the one that was checked and not at a link to it.
    """
    if isinstance(tensor, ir.TensorProtoTensor) and tensor.dtype.bitwidth >= 8:
        return ir.Tensor(
            tensor.numpy(), tensor.dtype, shape=tensor.shape, name=tensor.name, doc_string=tensor.doc_string,
            metadata_props=tensor.metadata_props,
        )  # fmt: skip
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    file = Path(tensor.path).resolve()
    return ir.ExternalTensor(
        file.name, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name,
        doc_string=tensor.doc_string, metadata_props=tensor.metadata_props, base_dir=file.parent,
    )  # fmt: skip
