"""A float32 graph as a float16 or bfloat16 one: weights and arithmetic, where that is safe.

Kept in float32 are nodes that sum squares, exponentials or many terms by themselves (a norm or a softmax that is spelt out; as
nodes of their own, runtimes sum them in float32), nodes that ONNX or the runtime do not define for the type, what is computed
from constants alone, and the model's inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from ...system.errors import ToastcError
from .. import Value
from .checks import has_branches
from .graph import OnnxGraph
from .names import operator_of
from .operators import operator

FLOAT = ir.DataType.FLOAT
TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def to_half(model: ir.Model, dtype: str) -> int:
    """In place. Returns how many nodes with floats stay float32."""
    half = TYPES[dtype]
    graph = OnnxGraph(model)
    types = graph.facts.dtypes
    if any(has_branches(node) for node in graph.graph):
        raise ToastcError(f"dtype: the model has branches or loops; {dtype} is for models without")
    if ir.DataType.FLOAT not in types.values():
        raise ToastcError(f"dtype: the model computes nothing in float32 that could be {dtype}")
    wide = {node for node in graph.graph if touches(node, types) and stays(node, graph, half)}
    held = set(graph.graph.initializers.values()) - set(graph.graph.inputs)
    of: dict[ir.Value, ir.DataType] = {v: FLOAT for v in graph.graph.inputs if types.get(v) == FLOAT}
    of |= {v: FLOAT if node in wide else half for node in graph.graph for v in node.outputs if types.get(v) == FLOAT}
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    weights: dict[ir.Value, ir.Value] = {}
    for node in list(graph.graph):
        if not touches(node, types):
            continue
        wanted = FLOAT if node in wide else half
        for slot, value in enumerate(node.inputs):
            if value is None or types.get(value) != FLOAT:
                continue
            if value in held:
                if wanted is half:
                    node.replace_input_with(slot, narrowed(graph, value, half, weights))
            elif of[value] is not wanted:
                node.replace_input_with(slot, cast(graph, value, wanted, node, casts))
        if node.op_type == "Cast" and wanted is half and types.get(node.outputs[0]) == FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(half))
        if node.op_type == "ConstantOfShape" and wanted is half and "value" in node.attributes:
            number = node.attributes["value"].as_tensor().numpy()
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(finite(number, half), dtype=half))
        for value in node.outputs:
            if of.get(value) is half:
                value.type = ir.TensorType(half)
    for i, value in enumerate(graph.graph.outputs):
        if of.get(value) is half:
            graph.graph.outputs[i] = restored(graph, value, half)
    for value in weights:
        if not value.uses():
            graph.graph.initializers.pop(str(value.name), None)
    return len(wide)


def touches(node: ir.Node, types: Mapping[Value, int]) -> bool:
    return any(v is not None and types.get(v) == FLOAT for v in (*node.inputs, *node.outputs))


def stays(node: ir.Node, graph: OnnxGraph, half: ir.DataType) -> bool:
    types = graph.facts.dtypes
    row = operator(operator_of(node))
    if row.delicate or all(v in graph.constants for v in node.outputs):
        return True
    if node.op_type == "Cast":  # positions that count higher than a half float can
        return types.get(node.inputs[0]) not in (int(FLOAT), int(ir.DataType.BOOL))
    if node.domain == "com.microsoft":
        return not row.halves
    schema = onnx.defs.get_schema(node.op_type, graph.opsets.get(node.domain, 1), node.domain)
    word = "tensor(float16)" if half is TYPES["fp16"] else "tensor(bfloat16)"
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    return any(word not in allowed.get(kind, {kind}) for kind in floats_of(schema, node, types))


def floats_of(schema: onnx.defs.OpSchema, node: ir.Node, types: Mapping[Value, int]) -> Iterator[str]:
    """The type parameters that the node's floats stand for."""
    for formal, values in ((schema.inputs, node.inputs), (schema.outputs, node.outputs)):
        for i, value in enumerate(values):
            if value is not None and types.get(value) == FLOAT:
                yield formal[min(i, len(formal) - 1)].type_str


def finite(numbers: np.ndarray, half: ir.DataType) -> np.ndarray:
    """What was finite stays so: masks are the lowest float32."""
    if half is TYPES["bf16"]:
        return numbers.astype(half.numpy())
    top = float(np.finfo(np.float16).max)
    return np.where(np.isfinite(numbers), np.clip(numbers, -top, top), numbers).astype(np.float16)


def narrowed(graph: OnnxGraph, value: ir.Value, half: ir.DataType, known: dict[ir.Value, ir.Value]) -> ir.Value:
    if value not in known:
        tensor = value.const_value
        assert tensor is not None

        def evaluate() -> ir.TensorProtocol:
            return ir.Tensor(finite(tensor.numpy(), half), dtype=half)

        name = graph.nodes.fresh(str(value.name))
        lazy = ir.LazyTensor(evaluate, dtype=half, shape=ir.Shape(tensor.shape.numpy()), name=name)
        known[value] = ir.Value(name=name, shape=lazy.shape, type=ir.TensorType(half), const_value=lazy)
        graph.graph.register_initializer(known[value])
    return known[value]


def cast(
    graph: OnnxGraph, value: ir.Value, to: ir.DataType, before: ir.Node, known: dict[tuple[ir.Value, ir.DataType], ir.Value]
) -> ir.Value:
    if (value, to) not in known:
        node = cast_node(graph, value, to)
        known[value, to] = node.outputs[0]
        graph.graph.insert_before(before, node)
    return known[value, to]


def cast_node(graph: OnnxGraph, value: ir.Value, to: ir.DataType) -> ir.Node:
    name = graph.nodes.fresh(f"{value.name}/Cast")
    made = ir.Value(name=f"{name}_0", type=ir.TensorType(to), shape=value.shape)
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(to))], outputs=[made], name=name)


def restored(graph: OnnxGraph, value: ir.Value, half: ir.DataType) -> ir.Value:
    """An output under its old name and of its old type."""
    node = cast_node(graph, value, FLOAT)
    graph.graph.append(node)
    made = node.outputs[0]
    value.name, made.name = made.name, value.name
    made.shape = value.shape
    return made
