"""Damage done to the nodes of an ONNX graph: lost, doubled, shuffled, rewired, nested; each kind by a random generator."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

Edit = Callable[[random.Random, onnx.ModelProto], None]
NAMES = (
    "",
    "x",
    " ",
    "a\nb",
    "\x1b[31m",
    "<script>alert(1)</script>",
    "$(touch x); rm -rf *",
    "../../x",
    "/x",
    "ü" * 40,
    "n" * 5000,
)
OPS = (
    "Add", "MatMul", "Reshape", "Transpose", "Softmax", "Split", "Squeeze", "Unsqueeze", "Concat", "Slice", "Gather", "Identity",
    "Gemm", "Conv", "Shape", "Cast", "Expand", "Where", "Einsum", "LayerNormalization", "If", "Loop", "Constant", "Pad", "Tile",
    "Range", "Size", "ReduceMean", "NonZero", "ConstantOfShape", "SequenceEmpty", "Optional", "Nonsense",
)  # fmt: skip


def node_of(rng: random.Random, model: onnx.ModelProto) -> onnx.NodeProto:
    return rng.choice(model.graph.node)


def tensor_of(rng: random.Random, model: onnx.ModelProto) -> onnx.TensorProto:
    return rng.choice(model.graph.initializer)


def value_name(rng: random.Random, model: onnx.ModelProto) -> str:
    return rng.choice([*(o for n in model.graph.node for o in n.output), *(t.name for t in model.graph.initializer), "image"])


def drop_node(rng: random.Random, model: onnx.ModelProto) -> None:
    del model.graph.node[rng.randrange(len(model.graph.node))]


def double_node(rng: random.Random, model: onnx.ModelProto) -> None:
    made = onnx.NodeProto.FromString(node_of(rng, model).SerializeToString())
    if made.output and rng.random() < 0.5:
        made.output[0] = "again"
    model.graph.node.insert(rng.randrange(len(model.graph.node)), made)


def shuffle_nodes(rng: random.Random, model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    a, b = sorted(rng.sample(range(len(nodes) + 1), 2))
    part = nodes[a:b]
    rng.shuffle(part)
    nodes[a:b] = part
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def other_operator(rng: random.Random, model: onnx.ModelProto) -> None:
    node = node_of(rng, model)
    node.op_type = rng.choice(OPS)
    if rng.random() < 0.2:
        node.domain = rng.choice(("com.microsoft", "ai.onnx.ml", "nowhere"))


def rewire(rng: random.Random, model: onnx.ModelProto) -> None:
    """An input comes from anywhere: often a cycle, or a tensor of another shape."""
    node = node_of(rng, model)
    if node.input:
        node.input[rng.randrange(len(node.input))] = value_name(rng, model)


def swap_inputs(rng: random.Random, model: onnx.ModelProto) -> None:
    node = node_of(rng, model)
    names = list(node.input)
    rng.shuffle(names)
    node.input[:] = names


def lose_input(rng: random.Random, model: onnx.ModelProto) -> None:
    node = node_of(rng, model)
    if node.input and rng.random() < 0.5:
        node.input[rng.randrange(len(node.input))] = ""
    elif node.input:
        del node.input[rng.randrange(len(node.input)) :]


def more_inputs(rng: random.Random, model: onnx.ModelProto) -> None:
    node_of(rng, model).input.extend(value_name(rng, model) for _ in range(rng.randint(1, 6)))


def lose_output(rng: random.Random, model: onnx.ModelProto) -> None:
    node = node_of(rng, model)
    if node.output and rng.random() < 0.5:
        del node.output[rng.randrange(len(node.output)) :]
    elif node.output:
        node.output[0] = rng.choice(("", value_name(rng, model)))


def branches(value: str, depth: int, doubled: int = 0, other: onnx.GraphProto | None = None) -> onnx.NodeProto:
    """An If on `flag` within an If ..., around a value; the `doubled` inner ones are so on both sides, the rest have `other`."""
    end = helper.make_empty_tensor_value_info
    graph = helper.make_graph([helper.make_node("Identity", [value], ["in"])], "g", [], [end("in")])
    other = graph if other is None else other
    for n in range(depth):
        both = {"then_branch": graph, "else_branch": graph if n < doubled else other}
        graph = helper.make_graph([helper.make_node("If", ["flag"], [f"in{n}"], **both)], "g", [], [end(f"in{n}")])
    return graph.node[0]


def nested(rng: random.Random, model: onnx.ModelProto) -> None:
    """Branches in branches in branches; protobuf itself ends at a hundred messages within each other."""
    node = branches(value_name(rng, model), rng.choice((1, 3, 20, 30)), doubled=5, other=onnx.GraphProto())
    model.graph.initializer.append(numpy_helper.from_array(np.array(rng.random() < 0.5), "flag"))
    model.graph.node.insert(rng.randrange(len(model.graph.node)), node)


def as_function(rng: random.Random, model: onnx.ModelProto) -> None:
    """A node that calls a function of the file: a sane one, one that calls itself, or one without a body."""
    node = node_of(rng, model)
    body = [onnx.NodeProto.FromString(node.SerializeToString())]
    if rng.random() < 0.4:
        body[0].op_type, body[0].domain = "F", "own"
    made = helper.make_function("own", "F", list(node.input), list(node.output), body, list(model.opset_import))
    if rng.random() < 0.2:
        del made.node[:]
    model.functions.append(made)
    node.op_type, node.domain = "F", "own"
    model.opset_import.append(helper.make_opsetid("own", 1))
