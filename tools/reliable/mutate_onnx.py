"""Damage done to what an ONNX file says: attributes, shapes, types, names and weights; and of all kinds of damage some."""

from __future__ import annotations

import random

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from .mutate_bytes import BYTES, flipped
from .mutate_nodes import (
    NAMES,
    Edit,
    as_function,
    double_node,
    drop_node,
    lose_input,
    lose_output,
    more_inputs,
    nested,
    node_of,
    other_operator,
    rewire,
    shuffle_nodes,
    swap_inputs,
    tensor_of,
    value_name,
)  # fmt: skip

NUMBERS = (0, 1, -1, 2, 3, 7, 16, 255, 4096, -(2**31), 2**31 - 1, 2**40, 2**62, -(2**63))
FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"))


def other_attribute(rng: random.Random, model: onnx.ModelProto) -> None:
    node = rng.choice([n for n in model.graph.node if n.attribute] or [node_of(rng, model)])
    if not node.attribute or rng.random() < 0.1:
        node.attribute.append(helper.make_attribute(rng.choice(("axis", "perm", "to", "value", "x")), rng.choice(NUMBERS)))
        return
    attribute, way = rng.choice(node.attribute), rng.random()
    if way < 0.1:
        node.attribute.remove(attribute)
    elif way < 0.2:
        attribute.type = rng.choice(AttributeProto.AttributeType.values())
    elif way < 0.3:
        attribute.name = rng.choice((*NAMES, "axis", "perm", "alpha"))
    elif way < 0.4:
        attribute.ref_attr_name = "other"
    elif attribute.type == AttributeProto.INTS:
        numbers = [*attribute.ints, rng.choice(NUMBERS)]
        rng.shuffle(numbers)
        attribute.ints[:] = numbers[: rng.randint(0, len(numbers))]
    elif attribute.type == AttributeProto.INT:
        attribute.i = rng.choice(NUMBERS)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice(FLOATS)
    elif attribute.type == AttributeProto.TENSOR:
        attribute.t.dims[:] = [rng.choice(NUMBERS) for _ in range(rng.randrange(3))]
    else:
        attribute.s = rng.randbytes(3)


def other_shape(rng: random.Random, model: onnx.ModelProto) -> None:
    """Of an input or an output, or what the file says of a tensor in between."""
    values = [*model.graph.input, *model.graph.output]
    if rng.random() < 0.3:
        made = helper.make_tensor_value_info(value_name(rng, model), rng.randrange(24), [rng.choice(NUMBERS) for _ in range(3)])
        model.graph.value_info.append(made)
        return
    value, way = rng.choice(values), rng.random()
    shape = value.type.tensor_type.shape
    if way < 0.15:
        value.type.tensor_type.ClearField("shape")
    elif way < 0.3:
        value.ClearField("type")
    elif way < 0.4:
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif shape.dim and way < 0.7:
        rng.choice(shape.dim).dim_value = rng.choice(NUMBERS)
    elif shape.dim and way < 0.85:
        rng.choice(shape.dim).dim_param = rng.choice((*NAMES, "batch"))
    elif shape.dim:
        del shape.dim[rng.randrange(len(shape.dim))]


def other_type(rng: random.Random, model: onnx.ModelProto) -> None:
    if rng.random() < 0.4:
        rng.choice([*model.graph.input, *model.graph.output]).type.tensor_type.elem_type = rng.randrange(26)
    else:
        tensor_of(rng, model).data_type = rng.randrange(26)


def other_dims(rng: random.Random, model: onnx.ModelProto) -> None:
    tensor, way = tensor_of(rng, model), rng.random()
    if tensor.dims and way < 0.5:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
    elif way < 0.75:
        tensor.dims[:] = list(tensor.dims)[::-1]
    else:
        tensor.dims.append(rng.choice((0, 1, 1, 2)))


def other_weight(rng: random.Random, model: onnx.ModelProto) -> None:
    """Numbers of another shape, type or size, all there; or NaN, or nothing."""
    tensor, name = rng.choice([t for t in model.graph.initializer]), ""
    name = tensor.name
    shape = tuple(rng.choice((0, 1, 2, 3, 16, 32, 64)) for _ in range(rng.randrange(5)))
    kind = rng.choice((np.float32, np.float16, np.float64, np.int64, np.int8, np.bool_))
    array = np.asarray(np.random.default_rng(rng.randrange(99)).integers(-3, 3, shape), kind)
    if kind is np.float32 and rng.random() < 0.3:
        array = np.full(shape, np.nan, np.float32)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def other_sizes(rng: random.Random, model: onnx.ModelProto) -> None:
    """Of the whole numbers that say how tensors are laid out, one is another."""
    tensor = rng.choice([t for t in model.graph.initializer if t.data_type == TensorProto.INT64] or list(model.graph.initializer))
    try:
        array = numpy_helper.to_array(tensor).copy()
    except ValueError:  # damaged by the edit before
        return
    if array.size and array.dtype == np.int64:
        array.flat[rng.randrange(array.size)] = rng.choice(NUMBERS)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def lose_weight(rng: random.Random, model: onnx.ModelProto) -> None:
    model.graph.initializer.remove(tensor_of(rng, model))


def double_weight(rng: random.Random, model: onnx.ModelProto) -> None:
    model.graph.initializer.append(tensor_of(rng, model))
    if rng.random() < 0.5:
        model.graph.initializer[-1].name = tensor_of(rng, model).name


def weight_as_input(rng: random.Random, model: onnx.ModelProto) -> None:
    tensor = tensor_of(rng, model)
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    if rng.random() < 0.5:
        model.graph.initializer.remove(tensor)


def other_name(rng: random.Random, model: onnx.ModelProto) -> None:
    """Everywhere the same, or only in one place."""
    old, new = value_name(rng, model), rng.choice((*NAMES, value_name(rng, model)))
    everywhere = rng.random() < 0.6
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old and (everywhere or rng.random() < 0.5):
                    names[i] = new
        if rng.random() < 0.1:
            node.name = rng.choice(NAMES)
    for value in (*model.graph.initializer, *model.graph.input):
        if value.name == old and everywhere:
            value.name = new


def other_ends(rng: random.Random, model: onnx.ModelProto) -> None:
    ends = rng.choice((model.graph.input, model.graph.output))
    way = rng.random()
    if way < 0.3 and ends:
        del ends[rng.randrange(len(ends))]
    elif way < 0.6 and ends:
        rng.choice(ends).name = rng.choice((*NAMES, value_name(rng, model)))
    else:
        ends.append(helper.make_tensor_value_info(value_name(rng, model), 1, [1, 2]))


def other_version(rng: random.Random, model: onnx.ModelProto) -> None:
    way = rng.random()
    if way < 0.4:
        model.opset_import[0].version = rng.choice((0, 1, 12, 13, 14, 17, 20, 21, 23, 24, 99, 2**40, -1))
    elif way < 0.6:
        model.ir_version = rng.choice((0, 1, 3, 8, 12, 13, 99, -1))
    elif way < 0.8:
        del model.opset_import[:]
    else:
        model.opset_import.append(helper.make_opsetid(rng.choice(("", "com.microsoft", "nowhere")), rng.choice((1, 13, 99))))


def other_metadata(rng: random.Random, model: onnx.ModelProto) -> None:
    for entry in model.metadata_props:
        if rng.random() < 0.7:
            entry.value = flipped(rng, entry.value.encode()).decode("utf-8", "replace") if entry.value else "x"
    model.metadata_props.add(
        key=rng.choice(("toastc.plan", "toastc.macs", *NAMES)), value=rng.choice(("{", "[]", "null", *NAMES))
    )


EDITS: tuple[Edit, ...] = (
    drop_node, double_node, shuffle_nodes, other_operator, rewire, swap_inputs, lose_input, more_inputs, lose_output, nested,
    as_function, other_attribute, other_shape, other_type, other_dims, other_weight, other_sizes, lose_weight, double_weight,
    weight_as_input, other_name, other_ends, other_version, other_metadata,
)  # fmt: skip


def mutated(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """What was done, and what came of it: damaged bytes, or one to three edits of the protobuf."""
    if rng.random() < 0.25:
        change = rng.choice(BYTES)
        return change.__name__, change(rng, data)
    model, names = onnx.ModelProto.FromString(data), []
    for edit in rng.choices(EDITS, k=rng.choice((1, 1, 2, 3))):
        if model.graph.node and model.graph.initializer and model.opset_import:
            edit(rng, model)
            names.append(edit.__name__)
    return "+".join(names), model.SerializeToString()
