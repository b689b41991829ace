"""What one ONNX node is, where the name of its operator does not tell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from ...system.vocabulary import Operand
from .. import AttentionSpec, Kind, Norm
from ..equations import einsum_spec, only_turns
from ..macs import tokens_and_width
from ..operators import convolution

Shapes = list[tuple[int, ...] | None]  # of a node's inputs, as far as they are known


def attribute(node: ir.Node, name: str, default: Operand = None) -> Operand:
    found = node.attributes.get(name)
    return default if found is None else found.value


# ---- which of its kinds a node is; `constant[i]`, `shapes[i]`: is input i known before running, and its concrete shape --------


def is_matmul(node: ir.Node, constant: list[bool], shapes: Shapes) -> Kind:
    if attribute(node, "transA", 0):
        return Kind.PRODUCT
    if constant[1] and shapes[1] is not None and len(shapes[1]) == 2 and not constant[0]:
        return Kind.LINEAR if attribute(node, "alpha", 1.0) == 1.0 else Kind.OPAQUE
    return Kind.PRODUCT


def is_gemm(node: ir.Node, constant: list[bool], shapes: Shapes) -> Kind:
    plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0 and not attribute(node, "transA", 0)
    return Kind.LINEAR if plain and constant[1] and bias_fits(node, shapes) else Kind.OPAQUE


def is_einsum(node: ir.Node, constant: list[bool], shapes: Shapes) -> Kind:
    turned = Kind.SHAPE if len(node.inputs) == 1 and only_turns(attribute(node, "equation", "")) else Kind.OPAQUE
    return Kind.PRODUCT if product_spec(node, shapes) else turned


def is_attention(node: ir.Node, constant: list[bool], shapes: Shapes) -> Kind:
    return Kind.ATTENTION if attention_spec(node, shapes) else Kind.OPAQUE


def is_convolution(node: ir.Node, constant: list[bool], shapes: Shapes) -> Kind:
    rows, weight = shapes[0], shapes[1]
    if rows is None or weight is None or not constant[1] or len(rows) != len(weight):
        return Kind.OPAQUE
    return convolution(int(attribute(node, "group", 1)), weight)


def is_batch_norm(node: ir.Node, constant: list[bool], shapes: Shapes) -> Kind:
    """A scale and a shift for each channel."""
    known = len(shapes[0] or ()) > 1 and all(constant[1:])
    return Kind.CHANNELWISE if known and not attribute(node, "training_mode", 0) else Kind.OPAQUE


def is_channelwise(node: ir.Node, constant: list[bool], shapes: Shapes) -> Kind:
    return Kind.CHANNELWISE if len(shapes[0] or ()) > 2 else Kind.OPAQUE


def is_reduction(node: ir.Node, constant: list[bool], shapes: Shapes) -> Kind:
    return Kind.REDUCE if shapes and shapes[0] else Kind.OPAQUE


def bias_fits(node: ir.Node, shapes: Shapes) -> bool:
    """Is that of a Gemm as wide as what it is added to? onnx does not look."""
    rows, weight, *bias = shapes
    if not bias or bias[0] is None or rows is None or weight is None:
        return True
    made = rows[0], weight[0 if attribute(node, "transB", 0) else 1]
    return len(bias[0]) <= 2 and all(size in (1, whole) for size, whole in zip(bias[0][::-1], made[::-1], strict=False))


# ---- the axes of the first input along which a reduction mixes elements; empty means all -------------------------------------


def last_axis(node: ir.Node, rank: int, given: list[int] | None) -> tuple[int, ...]:
    return (rank - 1,)


def along_axis(node: ir.Node, rank: int, given: list[int] | None) -> tuple[int, ...]:
    return (int(attribute(node, "axis", -1)) % rank,)


def from_axis(node: ir.Node, rank: int, given: list[int] | None) -> tuple[int, ...]:
    return tuple(range(int(attribute(node, "axis", -1)) % rank, rank))


def given_axes(node: ir.Node, rank: int, given: list[int] | None) -> tuple[int, ...]:
    axes = attribute(node, "axes") if given is None else given
    return tuple(int(a) % rank for a in axes) if axes else ()


def norm_of(node: ir.Node) -> Norm | None:
    """Where nobody asks for its mean."""
    read = any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
    return None if read else Norm(float(attribute(node, "epsilon", 1e-5)), node.op_type == "LayerNormalization")


# ---- products and attentions ----------------------------------------------------------------------------------------------


def product_spec(node: ir.Node, shapes: Shapes) -> tuple[str, str, str] | None:
    """MatMul as an equation over single letters: (a axes, b axes, output axes)."""
    if node.op_type == "Einsum":
        return einsum_spec(attribute(node, "equation", ""), [len(s) for s in shapes if s is not None])
    a, b = shapes[0], shapes[1]
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    if a[-2 if attribute(node, "transA", 0) else -1] != b[-1 if attribute(node, "transB", 0) else -2]:
        return None  # they do not fit
    batch = "abcdefgh"[: max(len(a), len(b)) - 2]
    left = batch[len(batch) - (len(a) - 2) :] + ("ki" if attribute(node, "transA", 0) else "ik")
    right = batch[len(batch) - (len(b) - 2) :] + ("jk" if attribute(node, "transB", 0) else "kj")
    return left, right, batch + "ij"


def attention_spec(node: ir.Node, shapes: Shapes, truths: Sequence[bool] = ()) -> AttentionSpec | None:
    """Layouts and heads of ONNX `Attention` and `com.microsoft.MultiHeadAttention`; None if it is neither."""
    known = [s for s in shapes[:3] if s is not None]
    if len(known) < 3:
        return None
    ranks = [len(s) for s in known]
    scale = attribute(node, "scale")
    if node.op_type == "Attention" and node.domain == "":
        if len(node.outputs) > 1 or len([v for v in node.inputs[4:] if v is not None]):
            return None  # a KV cache or the scores as an output
        if ranks == [4, 4, 4]:
            heads, kv = known[0][1], known[1][1]
            layouts, width = ("bhnd",) * 4, known[0][3]
        elif ranks == [3, 3, 3]:
            heads, kv = int(attribute(node, "q_num_heads", 0)), int(attribute(node, "kv_num_heads", 0))
            layouts, width = ("bn(hd)",) * 4, divided(known[0][2], heads)
        else:
            return None
        if not width or kv < 1:
            return None
        asked = {
            "has a mask of booleans": any(truths), "shares keys between heads": heads != kv,
            "is causal": attribute(node, "is_causal", 0), "caps its scores": attribute(node, "softcap", 0),
        }  # fmt: skip
        more = ", ".join(words for words, so in asked.items() if so)
        own = float(scale or 1 / math.sqrt(width))
        return fitting(AttentionSpec(heads, kv, layouts, own, masks=(3,), more=more), shapes)
    if node.op_type == "MultiHeadAttention" and node.domain == "com.microsoft":
        heads = int(attribute(node, "num_heads", 0))
        if ranks[0] != 3 or ranks[1] not in (3, 4) or ranks[2] not in (3, 4) or len(node.outputs) > 1:
            return None
        if len([v for v in node.inputs[6:] if v is not None]) or len(shapes[3] or (0,) if len(shapes) > 3 else (0,)) != 1:
            return None  # a KV cache, or a bias that is none
        of_k, of_v = ("bn(hd)" if r == 3 else "bhnd" for r in ranks[1:])
        width = divided(known[0][2], heads)
        if not width:
            return None
        made = AttentionSpec(
            heads, heads, ("bn(hd)", of_k, of_v, "bn(hd)"), float(scale or 1 / math.sqrt(width)),
            masks=(5,), bias=3 if len(node.inputs) > 3 and node.inputs[3] is not None else -1,
        )  # fmt: skip
        return fitting(made, shapes)
    return None


def fitting(spec: AttentionSpec, shapes: Shapes) -> AttentionSpec | None:
    """None where queries and keys are not as wide as each other."""
    q, k = (tokens_and_width(shapes[i] or (), spec.layouts[i], spec.kv_heads if i else spec.heads)[2] for i in (0, 1))
    return spec if q == k else None


def divided(width: int, heads: int) -> int:
    """Of each head; 0 where that makes no sense."""
    return 0 if heads < 1 or width % heads else width // heads
