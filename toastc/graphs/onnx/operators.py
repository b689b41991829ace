"""What the compiler knows of ONNX's operators and of ONNX Runtime's own: one row each.

    OPERATORS["Shrink"] = OnnxOperator(Kind.ELEMENTWISE)
    OPERATORS["my.domain::SwapHalves"] = OnnxOperator(Kind.SHAPE, compute=swap_halves)

Names of other domains than those two are `domain::Name`. An operator that a model defines by a function of its own is written
out in plain ones before anything is looked at, unless it has a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...system.vocabulary import Operand
from .. import Kind, Role
from ..operators import Operator
from .classify import (
    along_axis,
    from_axis,
    given_axes,
    is_attention,
    is_batch_norm,
    is_channelwise,
    is_convolution,
    is_einsum,
    is_gemm,
    is_matmul,
    is_reduction,
    last_axis,
    norm_of,
)  # fmt: skip
from .resize import become_gather_or_slice, reshape, split


@dataclass(frozen=True)
class OnnxOperator(Operator):
    compute: Callable[..., list[np.ndarray]] | None = None  # of a node's attributes and arrays, where onnx can not carry it out
    like_first: bool = False  # its first output is shaped like its first input, which onnx does not say
    grows: int | None = None  # its result is as large as the numbers in its inputs say, from this one on
    random: bool = False
    delicate: bool = False  # stays float32 where the rest becomes half floats
    halves: bool = False  # ONNX Runtime's own that take half floats


def rows(kind: Kind, names: str, **of_all: Operand) -> dict[str, OnnxOperator]:
    """Operators that are alike in all but their name."""
    return {name: OnnxOperator(kind, **of_all) for name in names.split()}


ELEMENTWISE, CHANNELWISE, SHAPE = Kind.ELEMENTWISE, Kind.CHANNELWISE, Kind.SHAPE
REDUCE, OPAQUE = Kind.REDUCE, Kind.OPAQUE
LAST: Any = {"axes": along_axis, "refine": is_reduction}
REDUCED: Any = {"axes": given_axes, "refine": is_reduction}
NORMED: Any = {"axes": last_axis, "refine": is_reduction, "like_first": True}

OPERATORS: dict[str, OnnxOperator] = {
    # products
    **rows(Kind.PRODUCT, "MatMul FusedMatMul", refine=is_matmul),
    "Gemm": OnnxOperator(Kind.LINEAR, refine=is_gemm),
    "Einsum": OnnxOperator(Kind.PRODUCT, refine=is_einsum),
    "Attention": OnnxOperator(Kind.ATTENTION, role=Role.ATTENTION | Role.PLAIN_ATTENTION, refine=is_attention),
    "MultiHeadAttention": OnnxOperator(Kind.ATTENTION, role=Role.ATTENTION, refine=is_attention, halves=True),
    "GroupQueryAttention": OnnxOperator(OPAQUE, role=Role.ATTENTION, like_first=True),
    "Conv": OnnxOperator(Kind.LINEAR, role=Role.CONVOLUTION, refine=is_convolution),
    "ConvTranspose": OnnxOperator(OPAQUE, role=Role.CONVOLUTION_BACK),
    # element by element
    "Mul": OnnxOperator(ELEMENTWISE, "linear", Role.MULTIPLY),
    "Div": OnnxOperator(ELEMENTWISE, "linear", Role.DIVIDE),
    "Neg": OnnxOperator(ELEMENTWISE, "linear"),
    **rows(ELEMENTWISE, "Identity Dropout", effect="linear", role=Role.SAME),
    "Cast": OnnxOperator(ELEMENTWISE, "linear", Role.SAME | Role.CAST),
    **rows(ELEMENTWISE, "Add", effect="affine", role=Role.ADD | Role.BOUND),
    **rows(ELEMENTWISE, "Sub", effect="affine", role=Role.BOUND),
    **rows(ELEMENTWISE, "Sum", effect="affine"),
    **rows(ELEMENTWISE, "BiasAdd", effect="affine", like_first=True),
    **rows(
        ELEMENTWISE,
        "Relu Erf Tanh HardSwish Mish Swish Softsign Abs LeakyRelu Elu Selu Celu PRelu ThresholdedRelu Sign Floor Ceil Round",
        role=Role.ZERO,
    ),
    **rows(ELEMENTWISE, "HardSigmoid Min Not And Or Equal Greater Less GreaterOrEqual LessOrEqual IsInf Mod CastLike"),
    **rows(ELEMENTWISE, "Gelu FastGelu BiasGelu", role=Role.ZERO, like_first=True, halves=True),
    "QuickGelu": OnnxOperator(ELEMENTWISE, role=Role.ZERO, like_first=True),
    "Sigmoid": OnnxOperator(ELEMENTWISE, role=Role.POSITIVE),
    **rows(ELEMENTWISE, "Exp Softplus", role=Role.POSITIVE, delicate=True),
    **rows(ELEMENTWISE, "Clip Max", role=Role.BOUND),
    "Reciprocal": OnnxOperator(ELEMENTWISE, role=Role.INVERT, delicate=True),
    **rows(ELEMENTWISE, "Sqrt Pow Sin", role=Role.ZERO, delicate=True),
    **rows(ELEMENTWISE, "Log Cos", delicate=True),
    "Where": OnnxOperator(ELEMENTWISE, role=Role.WHERE),
    "IsNaN": OnnxOperator(ELEMENTWISE, role=Role.IS_NAN),
    # channel by channel
    "BatchNormalization": OnnxOperator(CHANNELWISE, "linear", refine=is_batch_norm),
    **rows(CHANNELWISE, "AveragePool GlobalAveragePool", effect="linear", refine=is_channelwise),
    **rows(CHANNELWISE, "MaxPool GlobalMaxPool LpPool GlobalLpPool", refine=is_channelwise),
    **rows(CHANNELWISE, "InstanceNormalization GridSample", refine=is_channelwise, delicate=True),
    # rearrangements
    "Reshape": OnnxOperator(SHAPE, resize=reshape, sizes=True),
    "Expand": OnnxOperator(SHAPE, role=Role.EXPAND, resize=reshape, sizes=True, grows=1),
    "Tile": OnnxOperator(SHAPE, role=Role.EXPAND, grows=1),
    "Split": OnnxOperator(SHAPE, resize=split),
    "Slice": OnnxOperator(SHAPE, resize=become_gather_or_slice),
    **rows(
        SHAPE, "Transpose Squeeze Unsqueeze Gather Concat Flatten GatherElements GatherND DepthToSpace SpaceToDepth",
    ),
    # reductions
    "Softmax": OnnxOperator(REDUCE, role=Role.SOFTMAX | Role.POSITIVE, **LAST),
    "LogSoftmax": OnnxOperator(REDUCE, role=Role.SOFTMAX, delicate=True, **LAST),
    "LpNormalization": OnnxOperator(REDUCE, role=Role.LENGTH, delicate=True, **LAST),
    "Hardmax": OnnxOperator(REDUCE, **LAST),
    "LayerNormalization": OnnxOperator(REDUCE, role=Role.NORM, axes=from_axis, refine=is_reduction, norm=norm_of),
    "RMSNormalization": OnnxOperator(REDUCE, axes=from_axis, refine=is_reduction, norm=norm_of),
    **rows(REDUCE, "SkipLayerNormalization SkipSimplifiedLayerNormalization", role=Role.SKIP_NORM, halves=True, **NORMED),
    "SimplifiedLayerNormalization": OnnxOperator(REDUCE, norm=norm_of, **NORMED),
    "ReduceMean": OnnxOperator(REDUCE, role=Role.SUM | Role.MEAN, delicate=True, **REDUCED),
    "ReduceSum": OnnxOperator(REDUCE, role=Role.SUM, delicate=True, **REDUCED),
    **rows(REDUCE, "ReduceSumSquare ReduceL1 ReduceL2", role=Role.LENGTH, delicate=True, **REDUCED),
    "ReduceLogSumExp": OnnxOperator(REDUCE, delicate=True, **REDUCED),
    "ReduceProd": OnnxOperator(REDUCE, role=Role.ZERO, delicate=True, **REDUCED),
    **rows(REDUCE, "ReduceMax ReduceMin", role=Role.ZERO, **REDUCED),
    "ReduceLogSum": OnnxOperator(REDUCE, **REDUCED),
    # what is not understood, but known to somebody who looks at shapes, numbers or types
    **rows(OPAQUE, "BiasSplitGelu RotaryEmbedding GroupNormalization MeanVarianceNormalization", like_first=True),
    **rows(OPAQUE, "ConstantOfShape", grows=0),
    **rows(OPAQUE, "Pad OneHot", grows=1),
    **rows(OPAQUE, "Resize Upsample", grows=1, delicate=True),
    **rows(
        OPAQUE, "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial", random=True, delicate=True,
    ),
    **rows(OPAQUE, "CumSum Range EyeLike RoiAlign NonMaxSuppression", delicate=True),
}  # fmt: skip
UNKNOWN = OnnxOperator(OPAQUE)


def operator(name: str) -> OnnxOperator:
    return OPERATORS.get(name, UNKNOWN)
