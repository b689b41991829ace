"""Concrete facts about an ONNX graph: the shape of every value and the data of the small ones.

Symbolic sizes are replaced by numbers and the graph is walked once, node by node: what is small and known
is computed (`onnx.reference`), everything else has its shape inferred (`onnx.shape_inference`). Walking twice
with different numbers tells which sizes are only known at run time. Weights are never read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from ...system.errors import ToastcError
from ...system.vocabulary import Operand
from .. import Value
from .checks import has_branches
from .files import read_tensor
from .inference import Imports, Input, as_input, inferred
from .limits import stays_small
from .names import named, operator_of
from .operators import operator

SMALL = 4096  # elements; a value of up to this size is computed, not only shaped
# What the reference implementation raises on nodes it does not carry out; their shapes are inferred instead.
UNKNOWN_TO_REFERENCE = (ValueError, TypeError, IndexError, RuntimeError, NotImplementedError, KeyError)


class CannotCompute(ToastcError):
    """The reference implementation does not carry out a node: it does not know it, or its inputs do not fit."""


@dataclass
class Facts:
    shapes: dict[Value, tuple[int, ...]] = field(default_factory=dict)
    data: dict[Value, np.ndarray] = field(default_factory=dict)
    dtypes: dict[Value, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)  # of the symbols in the inputs' shapes
    declared: set[Value] = field(default_factory=set)  # values whose shapes nothing but the file tells


def symbols(model: ir.Model) -> list[str]:
    """Names of the symbolic sizes of the inputs, in order."""
    found: dict[str, None] = {}
    for value in runtime_inputs(model):
        for axis, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int):
                found.setdefault(symbol_of(value, axis), None)
    return list(found)


def runtime_inputs(model: ir.Model) -> list[ir.Value]:
    return [v for v in model.graph.inputs if v.name not in model.graph.initializers]


def symbol_of(value: ir.Value, axis: int) -> str:
    assert value.shape is not None
    dim: Operand = value.shape[axis]
    return str(dim.value) if dim.value else f"{value.name}.{axis}"


def sizes_for(model: ir.Model, large: bool = False) -> dict[str, int]:
    """A number for every symbolic size: small, and different when `large`."""
    sizes: dict[str, int] = {}
    for value in runtime_inputs(model):
        shape = value.shape or ()
        for axis, dim in enumerate(shape):
            if isinstance(dim, int):
                continue
            spatial = len(shape) == 4 and axis >= 2
            number = (256 if large else 224) if spatial else (3 if large else 2) if not sizes else (24 if large else 16)
            sizes.setdefault(symbol_of(value, axis), number)
    return sizes


def gather(model: ir.Model, sizes: Mapping[str, int]) -> Facts:
    """Walk the graph once with these sizes. A value nothing is known about has no entry."""
    facts = Facts(sizes=sizes)
    for value in model.graph.inputs:
        if value.shape is not None:
            facts.shapes[value] = tuple(
                d if isinstance(d, int) else sizes[symbol_of(value, i)] for i, d in enumerate(value.shape)
            )
        facts.dtypes[value] = int(value.dtype or 0)
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            note_tensor(facts, value, value.const_value)
    imports = tuple(model.graph.opset_imports.items())
    for node in model.graph:
        visit(facts, node, imports)
    return facts


def note_tensor(facts: Facts, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    facts.shapes[value] = tuple(tensor.shape.numpy())
    facts.dtypes[value] = int(tensor.dtype)
    if tensor.size <= SMALL and tensor.dtype != ir.DataType.STRING:
        facts.data[value] = read_tensor(tensor)


def visit(facts: Facts, node: ir.Node, imports: Imports) -> None:
    kind = operator_of(node)
    if kind == "Constant" and node.domain == "":
        attr = next(iter(node.attributes.values()))
        tensor = attr.value if attr.type == ir.AttributeType.TENSOR else ir.tensor(np.asarray(attr.value))
        return note_tensor(facts, node.outputs[0], tensor)
    if has_branches(node):
        return declared(facts, node)
    given = [v for v in node.inputs if v is not None]
    if kind == "Shape" and given[0] in facts.shapes:
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        end = node.attributes["end"].as_int() if "end" in node.attributes else None
        return note_data(facts, node.outputs[0], np.array(facts.shapes[given[0]], np.int64)[start:end])
    if kind == "Size" and given[0] in facts.shapes:
        return note_data(facts, node.outputs[0], np.array(math.prod(facts.shapes[given[0]]), np.int64))
    if not operator(kind).random and given and all(v in facts.data for v in given):
        if not stays_small(kind, [facts.data[v] for v in given]):
            return infer(facts, node, imports)
        try:
            arrays = evaluate(node, [facts.data[v] for v in given], dict(imports))
        except CannotCompute:
            return infer(facts, node, imports)
        for value, array in zip(node.outputs, arrays, strict=False):
            note_data(facts, value, np.asarray(array))
        return None
    return infer(facts, node, imports)


def note_data(facts: Facts, value: ir.Value, array: np.ndarray) -> None:
    facts.shapes[value] = array.shape
    facts.dtypes[value] = int(ir.DataType.from_numpy(array.dtype))
    if array.size <= SMALL:
        facts.data[value] = array


def evaluate(node: ir.Node, given: list[np.ndarray], opsets: Mapping[str, int]) -> list[np.ndarray]:
    """Run one node by the reference implementation on the inputs that are present."""
    return evaluate_proto(ir.serde.serialize_node(node), given, opsets)


def gather_elements(proto: onnx.NodeProto, data: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The reference implementation picks from 64 positions at most."""
    axis = next((a.i for a in proto.attribute if a.name == "axis"), 0) % data.ndim
    around = tuple(slice(None) if i == axis else slice(size) for i, size in enumerate(index.shape))
    return np.take_along_axis(data[around], index, axis)


def evaluate_proto(proto: onnx.NodeProto, given: list[np.ndarray], opsets: Mapping[str, int]) -> list[np.ndarray]:
    feeds = dict(zip([name for name in proto.input if name], given, strict=True))
    compute = operator(named(proto.op_type, proto.domain)).compute
    try:
        if compute is not None:
            return compute(proto, *given)
        if proto.op_type == "GatherElements":
            return [gather_elements(proto, *given)]
        return list(ReferenceEvaluator(proto, opsets=dict(opsets)).run(None, feeds))
    except UNKNOWN_TO_REFERENCE as error:
        text = " ".join(str(error).split())[:160]
        raise CannotCompute(f"node {proto.name or proto.op_type} ({proto.op_type}) can not be carried out: {text}") from None


def infer(facts: Facts, node: ir.Node, imports: Imports) -> None:
    version = dict(imports).get(node.domain, 1)
    if not onnx.defs.has(node.op_type, version, node.domain):
        return infer_contrib(facts, node, imports)
    given: list[Input | None] = []
    for value in node.inputs:
        if value is not None and value not in facts.shapes:
            return declared(facts, node)
        given.append(None if value is None else as_input(facts.dtypes[value], facts.shapes[value], facts.data.get(value)))
    attributes = tuple(ir.serde.serialize_attribute(a).SerializeToString() for a in node.attributes.values())
    found = inferred((node.op_type, node.domain), attributes, tuple(given), len(node.outputs), imports)
    if found is None:
        return declared(facts, node)
    for value, one in zip(node.outputs, found, strict=True):
        if one is not None:
            facts.dtypes[value], shape = one
            if shape is not None:
                facts.shapes[value] = shape
    return infer_contrib(facts, node, imports)


def infer_contrib(facts: Facts, node: ir.Node, imports: Imports) -> None:
    """Shapes of nodes that onnx has no schema of: those of `com.microsoft`, and what has a row of its own."""
    kind = operator_of(node)
    first = facts.shapes.get(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
    if first is None:
        return declared(facts, node)
    shape: tuple[int, ...] | None = None
    if operator(kind).compute is not None and all(v in facts.shapes for v in node.inputs):
        blank = [facts.data.get(v, np.broadcast_to(np.int64(0), facts.shapes[v])) for v in node.inputs]
        shape = evaluate(node, blank, dict(imports))[0].shape
    elif operator(kind).like_first:
        shape = first
    elif kind == "MultiHeadAttention" and "num_heads" in node.attributes and len(first) in (3, 5):
        heads = node.attributes["num_heads"].as_int()
        value = facts.shapes.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        width = first[2] * first[4] if len(first) == 5 else first[2]
        if value is not None:
            width = value[2] if len(value) == 3 else heads * value[-1] if value else 0
        shape = (first[0], first[1], width)
    elif kind == "FusedMatMul" and min(len(first), len(facts.shapes.get(node.inputs[1], ()))) > 1:
        a, b = list(first), list(facts.shapes[node.inputs[1]])
        if "transA" in node.attributes and node.attributes["transA"].as_int():
            a[-1], a[-2] = a[-2], a[-1]
        if "transB" in node.attributes and node.attributes["transB"].as_int():
            b[-1], b[-2] = b[-2], b[-1]
        try:
            shape = (*np.broadcast_shapes(tuple(a[:-2]), tuple(b[:-2])), a[-2], b[-1])
        except ValueError:  # they do not fit
            return declared(facts, node)
    if shape is not None and node.outputs[0] not in facts.shapes:
        facts.shapes[node.outputs[0]] = shape
        facts.dtypes[node.outputs[0]] = facts.dtypes[node.inputs[0]]
        if kind == "SkipLayerNormalization" and len(node.outputs) > 3:
            facts.shapes[node.outputs[3]] = shape
            facts.dtypes[node.outputs[3]] = facts.dtypes[node.inputs[0]]
    return declared(facts, node)


def declared(facts: Facts, node: ir.Node) -> None:
    """Last resort: what the file itself says of shapes, in numbers and in sizes of the inputs."""
    for value in node.outputs:
        if value not in facts.shapes and value.shape is not None:
            shape = [d if isinstance(d, int) else facts.sizes.get(str(d.value)) for d in value.shape]
            if None not in shape:
                facts.shapes[value] = tuple(shape)  # type: ignore[arg-type]
                facts.declared.add(value)
        if value not in facts.dtypes and value.dtype is not None:
            facts.dtypes[value] = int(value.dtype)
