"""What the compiler knows of torch's operators: one row each, under the name they have in every dialect.

    OPERATORS["my_gelu"] = Operator(Kind.ELEMENTWISE)

`aten.add_.Tensor`, `torch.add` and the method `add` are all `add`.
"""

from __future__ import annotations

from .. import Kind, Role
from ..operators import Operator, rows
from .classify import (
    along_dims,
    is_addmm,
    is_attention,
    is_baddbmm,
    is_batch_norm,
    is_channelwise,
    is_convolution,
    is_einsum,
    is_linear,
    is_matmul,
    norm_of,
    normed_dims,
)  # fmt: skip
from .resize import expand, reshape, split

ELEMENTWISE, CHANNELWISE, SHAPE = Kind.ELEMENTWISE, Kind.CHANNELWISE, Kind.SHAPE
REDUCE, OPAQUE = Kind.REDUCE, Kind.OPAQUE

OPERATORS: dict[str, Operator] = {
    # products
    "linear": Operator(Kind.LINEAR, refine=is_linear),
    "addmm": Operator(Kind.LINEAR, refine=is_addmm),
    **rows(Kind.PRODUCT, "matmul mm bmm", refine=is_matmul),
    "baddbmm": Operator(Kind.PRODUCT, refine=is_baddbmm),
    "einsum": Operator(Kind.PRODUCT, refine=is_einsum),
    "scaled_dot_product_attention": Operator(Kind.ATTENTION, refine=is_attention),
    **rows(Kind.LINEAR, "conv1d conv2d conv3d convolution", role=Role.CONVOLUTION, refine=is_convolution),
    **rows(OPAQUE, "conv_transpose1d conv_transpose2d conv_transpose3d", role=Role.CONVOLUTION_BACK),
    # element by element
    **rows(ELEMENTWISE, "mul imul multiply", effect="linear", role=Role.MULTIPLY),
    **rows(ELEMENTWISE, "div truediv itruediv divide", effect="linear", role=Role.DIVIDE),
    **rows(ELEMENTWISE, "neg type type_as half bfloat16 _assert_tensor_metadata", effect="linear"),
    **rows(ELEMENTWISE, "dropout identity", effect="linear", role=Role.SAME),
    **rows(ELEMENTWISE, "to float _to_copy", effect="linear", role=Role.SAME | Role.CAST),
    **rows(ELEMENTWISE, "add iadd", effect="affine", role=Role.ADD | Role.BOUND),
    **rows(ELEMENTWISE, "sub isub subtract", effect="affine", role=Role.BOUND),
    **rows(ELEMENTWISE, "rsub", effect="affine"),
    **rows(
        ELEMENTWISE,
        "gelu relu silu tanh hardswish relu6 erf pow square sqrt abs sin mish elu selu celu leaky_relu prelu softsign "
        "nan_to_num expm1 log1p",
        role=Role.ZERO,
    ),
    **rows(
        ELEMENTWISE,
        "hardsigmoid hardtanh log masked_fill minimum clamp_max cos logical_not logical_and logical_or eq ne lt gt le ge "
        "threshold addcmul",
    ),
    **rows(ELEMENTWISE, "sigmoid exp softplus", role=Role.POSITIVE),
    **rows(ELEMENTWISE, "clamp clamp_min maximum", role=Role.BOUND),
    **rows(ELEMENTWISE, "reciprocal rsqrt", role=Role.INVERT),
    "where": Operator(ELEMENTWISE, role=Role.WHERE),
    "isnan": Operator(ELEMENTWISE, role=Role.IS_NAN),
    # channel by channel
    "batch_norm": Operator(CHANNELWISE, "linear", refine=is_batch_norm),
    **rows(
        CHANNELWISE, "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "upsample_nearest2d upsample_bilinear2d interpolate",
        effect="linear", refine=is_channelwise,
    ),
    **rows(
        CHANNELWISE,
        "max_pool1d max_pool2d max_pool3d adaptive_max_pool2d upsample_bicubic2d instance_norm grid_sample grid_sampler",
        refine=is_channelwise,
    ),
    # rearrangements
    **rows(SHAPE, "view reshape _unsafe_view unflatten flatten view_as reshape_as", resize=reshape, sizes=True),
    **rows(SHAPE, "expand expand_as", role=Role.EXPAND, resize=expand, sizes=True),
    **rows(SHAPE, "split split_with_sizes chunk tensor_split", resize=split),
    **rows(SHAPE, "contiguous clone alias", role=Role.SAME),
    **rows(
        SHAPE,
        "permute transpose swapaxes swapdims movedim moveaxis t unsqueeze squeeze select slice unbind cat concat "
        "concatenate stack repeat repeat_interleave tile narrow roll flip getitem index_select detach lift_fresh_copy "
        "hsplit adjoint rot90 unsafe_split unsafe_chunk take_along_dim",
    ),
    # reductions
    **rows(REDUCE, "softmax", role=Role.SOFTMAX | Role.POSITIVE, axes=along_dims),
    **rows(REDUCE, "_softmax _safe_softmax", role=Role.SOFTMAX, axes=along_dims),
    **rows(REDUCE, "log_softmax", axes=along_dims),
    **rows(REDUCE, "layer_norm rms_norm", axes=normed_dims, norm=norm_of),
    "mean": Operator(REDUCE, role=Role.SUM | Role.MEAN, axes=along_dims),
    "sum": Operator(REDUCE, role=Role.SUM, axes=along_dims),
    **rows(REDUCE, "norm vector_norm linalg_vector_norm normalize", role=Role.LENGTH, axes=along_dims),
    **rows(REDUCE, "amax amin var std prod cumsum topk", role=Role.ZERO, axes=along_dims),
    **rows(REDUCE, "logsumexp argmax", axes=along_dims),
}  # fmt: skip
UNKNOWN = Operator(OPAQUE)


def operator(name: str) -> Operator:
    return OPERATORS.get(name, UNKNOWN)
