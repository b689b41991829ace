"""Which of the seven kinds an fx node is, by the name of what it calls."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from .. import Kind
from ..equations import einsum_spec, only_turns

SHAPES = {
    "view", "reshape", "_unsafe_view", "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "unsqueeze",
    "squeeze", "select", "slice", "split", "split_with_sizes", "chunk", "unbind", "cat", "concat", "concatenate", "stack",
    "expand", "repeat", "repeat_interleave", "tile", "flatten", "unflatten", "narrow", "contiguous", "clone", "roll", "flip",
    "getitem", "index_select", "alias", "detach", "lift_fresh_copy", "tensor_split", "hsplit", "expand_as", "view_as",
    "reshape_as", "adjoint", "rot90", "unsafe_split", "unsafe_chunk", "take_along_dim",
}  # fmt: skip
RESHAPES = {"view", "reshape", "_unsafe_view", "unflatten", "flatten", "view_as", "reshape_as"}
EXPANSIONS = {"expand", "expand_as"}
LINEAR_EFFECT = {
    "mul",
    "imul",
    "multiply",
    "div",
    "truediv",
    "itruediv",
    "divide",
    "neg",
    "to",
    "type",
    "type_as",
    "float",
    "half",
    "bfloat16",
    "_to_copy",
    "dropout",
    "identity",
    "batch_norm",
    "_assert_tensor_metadata",
}
AFFINE_EFFECT = {"add", "iadd", "sub", "isub", "subtract", "rsub"}
NONLINEAR = {
    "gelu", "relu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "relu6", "softplus", "exp", "log",
    "erf", "pow", "where", "masked_fill", "clamp", "clamp_min", "clamp_max", "maximum", "minimum", "square", "sqrt", "rsqrt",
    "abs", "sin", "cos", "mish", "elu", "selu", "celu", "leaky_relu", "prelu", "reciprocal", "softsign", "logical_not",
    "logical_and", "logical_or", "eq", "ne", "lt", "gt", "le", "ge", "isnan", "nan_to_num", "threshold", "expm1", "log1p",
}  # fmt: skip
SOFTMAX = {"softmax", "_softmax", "log_softmax", "_safe_softmax"}
NORMS = {"layer_norm", "rms_norm"}
REDUCTIONS = {
    "norm",
    "vector_norm",
    "linalg_vector_norm",
    "normalize",
    "mean",
    "sum",
    "amax",
    "amin",
    "var",
    "std",
    "prod",
    "cumsum",
    "logsumexp",
    "argmax",
    "topk",
}
CREATIONS = {"arange", "zeros", "ones", "full", "tensor", "scalar_tensor", "eye", "linspace", "empty"}
RANDOM = {"rand", "randn", "randint", "bernoulli", "multinomial", "normal", "rand_like", "randn_like", "randperm"}


def op_name(node: fx.Node) -> str:
    """`aten.add_.Tensor`, `torch.add`, `operator.iadd` and the method `add` are all `add`, `iadd` or `add`."""
    target: Any = node.target
    if node.op == "call_method":
        name = str(target)
    elif isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[-1]
    else:
        name = getattr(target, "__name__", str(target))
    return name if name.startswith("_") or not name.endswith("_") else name.rstrip("_")


def kind_of(node: fx.Node, name: str, constant: list[bool], ranks: list[int]) -> Kind:
    """`constant[i]`, `ranks[i]` of the node's tensor operands, in order of appearance."""
    if name == "linear":
        return Kind.LINEAR if constant[1] and not constant[0] and ranks[1] == 2 else Kind.OPAQUE
    if name == "addmm":
        plain = node.kwargs.get("alpha", 1) == 1 and node.kwargs.get("beta", 1) == 1
        return Kind.LINEAR if plain and constant[2] and not constant[1] else Kind.OPAQUE
    if name in ("matmul", "mm", "bmm"):
        if len(ranks) == 2 and constant[1] and ranks[1] == 2 and not constant[0] and ranks[0] >= 2:
            return Kind.LINEAR
        return Kind.PRODUCT if min(ranks) >= 2 else Kind.OPAQUE
    if name == "baddbmm":
        known = all(isinstance(node.kwargs.get(by, 1), int | float) for by in ("alpha", "beta"))
        return Kind.PRODUCT if known and len(ranks) == 3 else Kind.OPAQUE
    if name == "einsum":
        turned = Kind.SHAPE if len(ranks) == 1 and only_turns(str(node.args[0])) else Kind.OPAQUE
        return Kind.PRODUCT if len(ranks) == 2 else turned
    if name == "scaled_dot_product_attention":
        return Kind.ATTENTION if ranks[:3] == [4, 4, 4] else Kind.OPAQUE
    if name == "batch_norm":  # of rows: a scale and a shift for each channel
        training = node.args[5] if len(node.args) > 5 else node.kwargs.get("training", False)
        return Kind.ELEMENTWISE if not training and ranks[0] == 2 and all(constant[1:]) else Kind.OPAQUE
    if name in SHAPES:
        return Kind.SHAPE
    if name in LINEAR_EFFECT or name in AFFINE_EFFECT or name in NONLINEAR:
        return Kind.ELEMENTWISE
    if name in SOFTMAX or name in NORMS or name in REDUCTIONS:
        return Kind.REDUCE
    return Kind.OPAQUE


def effect_of(node: fx.Node, name: str) -> str:
    if name in LINEAR_EFFECT:
        number_above = name in ("div", "truediv", "divide") and not isinstance(node.args[0], fx.Node)
        return "nonlinear" if number_above else "linear"
    return "affine" if name in AFFINE_EFFECT else "nonlinear"


def factor_of(node: fx.Node, name: str) -> float | None:
    """Of a multiplication of one tensor and one number."""
    number = node.args[1] if len(node.args) == 2 else None
    if name not in ("mul", "div") or isinstance(number, bool) or not isinstance(number, int | float) or not number:
        return None
    return float(number) if name == "mul" else 1 / number


def reduced_axes(node: fx.Node, name: str, rank: int) -> tuple[int, ...]:
    if name in NORMS:
        shape = argument(node, 1, "normalized_shape")
        return tuple(range(rank - len(shape), rank)) if isinstance(shape, tuple | list) else ()
    at = 1 if name not in ("norm", "vector_norm", "linalg_vector_norm", "normalize", "topk") else 2
    dim = argument(node, at, "dim", default={"normalize": 1, "topk": -1}.get(name))
    if isinstance(dim, int):
        return (dim % rank,)
    return tuple(d % rank for d in dim) if isinstance(dim, tuple | list) else ()


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default


def product_spec(node: fx.Node, name: str, ranks: list[int]) -> tuple[str, str, str] | None:
    if name == "einsum":
        return einsum_spec(str(node.args[0]), ranks)
    batch = "abcdefgh"[: max(ranks) - 2]
    return batch[len(batch) - (ranks[0] - 2) :] + "ik", batch[len(batch) - (ranks[1] - 2) :] + "kj", batch + "ij"


def lent_sizes(node: fx.Node, own: Sequence[Any]) -> list[fx.Node]:
    """The tensors whose sizes a node is given, through the numbers that are made of them; `view_as` has one for nothing else."""
    given = [n for n in node.all_input_nodes if n not in own]
    found = [n for n in given if isinstance(meta(n), torch.Tensor)]
    todo = [n for n in given if n not in found]
    while todo:
        for above in todo.pop().all_input_nodes:
            (found if isinstance(meta(above), torch.Tensor) else todo).append(above)
    return found


def parts_of(node: fx.Node) -> list[fx.Node]:
    """What is taken out of the tuple that a node makes."""
    return [user for user in node.users if is_getitem_of_tuple(user)]


def is_getitem_of_tuple(node: fx.Node) -> bool:
    return (
        node.op == "call_function"
        and node.target is operator.getitem
        and isinstance(node.args[1], int)
        and is_tuple(node.args[0])
    )


def is_tuple(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(meta(node), tuple | list)


def meta(node: Any) -> Any:
    """The fake value the tracer left on a node: under `val` by torch.export, under `example_value` by Dynamo."""
    found = node.meta.get("val")
    return node.meta.get("example_value") if found is None else found
