"""What one fx node is: what it calls, in every dialect by the same name, and what that name alone does not tell."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

from ...system.vocabulary import Operand
from .. import Kind, Norm
from ..equations import einsum_spec, only_turns
from ..operators import convolution

DIVISIONS = {"div", "truediv", "divide"}
CREATIONS = {"arange", "zeros", "ones", "full", "tensor", "scalar_tensor", "eye", "linspace", "empty"}
RANDOM = {"rand", "randn", "randint", "bernoulli", "multinomial", "normal", "rand_like", "randn_like", "randperm"}


IN_PLACE = ("setitem", "iadd", "isub", "imul", "itruediv", "iand", "ior")


def op_name(node: fx.Node) -> str:
    """`aten.add_.Tensor`, `torch.add`, `operator.iadd` and the method `add` are all `add`, `iadd` or `add`."""
    target: Operand = node.target
    if node.op == "call_method":
        name = str(target)
    elif isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[-1]
    else:
        name = getattr(target, "__name__", str(target))
    return name if name.startswith("_") or not name.endswith("_") else name.rstrip("_")


def writes(node: fx.Node) -> bool:
    """Into a tensor that it is given."""
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    called = node.op in ("call_function", "call_method")
    return called and (name in IN_PLACE or (name.endswith("_") and not name.startswith("_")))


# ---- which of its kinds a node is: `constant[i]`, `ranks[i]` of its tensor operands, in order of appearance --------------------


def is_linear(node: fx.Node, constant: list[bool], ranks: list[int]) -> Kind:
    return Kind.LINEAR if constant[1] and not constant[0] and ranks[1] == 2 else Kind.OPAQUE


def is_addmm(node: fx.Node, constant: list[bool], ranks: list[int]) -> Kind:
    plain = node.kwargs.get("alpha", 1) == 1 and node.kwargs.get("beta", 1) == 1
    return Kind.LINEAR if plain and constant[2] and not constant[1] else Kind.OPAQUE


def is_matmul(node: fx.Node, constant: list[bool], ranks: list[int]) -> Kind:
    if len(ranks) == 2 and constant[1] and ranks[1] == 2 and not constant[0] and ranks[0] >= 2:
        return Kind.LINEAR
    return Kind.PRODUCT if min(ranks) >= 2 else Kind.OPAQUE


def is_baddbmm(node: fx.Node, constant: list[bool], ranks: list[int]) -> Kind:
    known = all(isinstance(node.kwargs.get(by, 1), int | float) for by in ("alpha", "beta"))
    return Kind.PRODUCT if known and len(ranks) == 3 else Kind.OPAQUE


def is_einsum(node: fx.Node, constant: list[bool], ranks: list[int]) -> Kind:
    turned = Kind.SHAPE if len(ranks) == 1 and only_turns(str(node.args[0])) else Kind.OPAQUE
    return Kind.PRODUCT if len(ranks) == 2 else turned


def is_attention(node: fx.Node, constant: list[bool], ranks: list[int]) -> Kind:
    return Kind.ATTENTION if ranks[:3] == [4, 4, 4] else Kind.OPAQUE


def is_batch_norm(node: fx.Node, constant: list[bool], ranks: list[int]) -> Kind:
    """A scale and a shift for each channel."""
    training = node.args[5] if len(node.args) > 5 else node.kwargs.get("training", False)
    return Kind.CHANNELWISE if not training and ranks[0] > 1 and all(constant[1:]) else Kind.OPAQUE


def is_convolution(node: fx.Node, constant: list[bool], ranks: list[int]) -> Kind:
    back = op_name(node) == "convolution" and argument(node, 6, "transposed", False)
    if back or len(ranks) < 2 or not constant[1] or ranks[0] != ranks[1]:
        return Kind.OPAQUE
    weight: Operand = argument(node, 1, "weight")
    return convolution(argument(node, groups_at(node), "groups", 1), tuple(meta(weight).shape))


def groups_at(node: fx.Node) -> int:
    """The place of a convolution's number of groups."""
    return 8 if op_name(node) == "convolution" else 6


def set_groups(node: fx.Node, count: int) -> None:
    at = groups_at(node)
    if len(node.args) > at:
        node.update_arg(at, count)
    else:
        node.update_kwarg("groups", count)


def is_channelwise(node: fx.Node, constant: list[bool], ranks: list[int]) -> Kind:
    return Kind.CHANNELWISE if ranks[0] > 2 else Kind.OPAQUE


# ---- more about a node -------------------------------------------------------------------------------------------------------


def effect_of(node: fx.Node, effect: str) -> str:
    """A number divided by a tensor is not linear in it."""
    return "nonlinear" if op_name(node) in DIVISIONS and not isinstance(node.args[0], fx.Node) else effect


def factor_of(node: fx.Node) -> float | None:
    """Of a multiplication of one tensor and one number."""
    number = node.args[1] if len(node.args) == 2 else None
    name = op_name(node)
    if name not in ("mul", "div") or isinstance(number, bool) or not isinstance(number, int | float) or not number:
        return None
    return float(number) if name == "mul" else 1 / number


def normed_dims(node: fx.Node, rank: int) -> tuple[int, ...]:
    shape = argument(node, 1, "normalized_shape")
    return tuple(range(rank - len(shape), rank)) if isinstance(shape, tuple | list) else ()


def norm_of(node: fx.Node) -> Norm | None:
    """`rms_norm` has no shift. A shift without a scale would stand in the scale's place."""
    centred = op_name(node) == "layer_norm"
    if centred and argument(node, 2, "weight") is None is not argument(node, 3, "bias"):
        return None
    eps = argument(node, 4 if centred else 3, "eps", 1e-5 if centred else None)
    return Norm(torch.finfo(meta(node).dtype).eps if eps is None else eps, centred)


def along_dims(node: fx.Node, rank: int) -> tuple[int, ...]:
    """The axes along which a reduction mixes elements; empty means all."""
    name = op_name(node)
    at = 1 if name not in ("norm", "vector_norm", "linalg_vector_norm", "normalize", "topk") else 2
    dim = argument(node, at, "dim", default={"normalize": 1, "topk": -1}.get(name))
    if isinstance(dim, int):
        return (dim % rank,)
    return tuple(d % rank for d in dim) if isinstance(dim, tuple | list) else ()


def argument(node: fx.Node, position: int, name: str, default: Operand = None) -> Operand:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default


def product_spec(node: fx.Node, name: str, ranks: list[int]) -> tuple[str, str, str] | None:
    if name == "einsum":
        return einsum_spec(str(node.args[0]), ranks)
    batch = "abcdefgh"[: max(ranks) - 2]
    return batch[len(batch) - (ranks[0] - 2) :] + "ik", batch[len(batch) - (ranks[1] - 2) :] + "kj", batch + "ij"


def lent_sizes(node: fx.Node, own: Sequence[Operand]) -> list[fx.Node]:
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


def is_tuple(node: Operand) -> bool:
    return isinstance(node, fx.Node) and isinstance(meta(node), tuple | list)


def meta(node: Operand) -> Operand:
    """The fake value the tracer left on a node: under `val` by torch.export, under `example_value` by Dynamo."""
    found = node.meta.get("val")
    return node.meta.get("example_value") if found is None else found
