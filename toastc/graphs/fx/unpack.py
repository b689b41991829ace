"""Whole attentions and encoder layers, one node to a tracer, taken apart into their linears and products.

Each is traced by itself, on the fake values that the tracer left at the nodes, and stands in the graph instead of its node.
`scaled_dot_product_attention` is left whole over images, heads, tokens and channels; over other axes (SAM, Hiera, Twins) only
its products tell which axis is which.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from ...system.vocabulary import Operand
from .classify import meta, op_name


def unpacked(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy to edit, which shares weights and fake values with the graph that was captured."""
    made = fx.GraphModule(gm, copied(gm.graph))  # which takes over what the graph refers to
    made.graph = fx.Graph()
    made.graph.set_codegen(gm.graph._codegen)
    of: dict[fx.Node, Operand] = {}
    for node in gm.graph.nodes:
        whole = whole_of(node)
        if node.op == "output":
            made.graph.output(fx.node.map_arg(node.args[0], of.__getitem__))
        elif whole is not None:
            of[node] = inlined(node, whole, made, of)
        elif node.target is operator.getitem and isinstance(of[node.args[0]], tuple):
            of[node] = of[node.args[0]][node.args[1]]
        else:
            of[node] = made.graph.node_copy(node, of.__getitem__)
    without_empty_parts(made.graph)
    made.recompile()
    return made


def copied(graph: fx.Graph) -> fx.Graph:
    new = fx.Graph()
    new.graph_copy(graph, {})
    return new


def is_packed(gm: fx.GraphModule) -> bool:
    return any(whole_of(node) is not None for node in gm.graph.nodes)


def whole_of(node: fx.Node) -> Callable[..., Operand] | None:
    """What it computes, in parts; None for a node that stays."""
    if node.op != "call_function":
        return None
    if op_name(node) == "scaled_dot_product_attention":
        given = [meta(n) for n in node.args[:1] if isinstance(n, fx.Node)]
        return products if given and isinstance(given[0], Tensor) and given[0].ndim != 4 else None
    return WHOLE.get(node.target)


def without_empty_parts(graph: fx.Graph) -> None:
    """Joins of nothing and something: rotary embeddings put back class tokens where a model has none."""
    for node in list(graph.nodes):
        if op_name(node) not in ("cat", "concat", "concatenate") or not isinstance(node.args[0], list | tuple):
            continue
        empty = [n for n in node.args[0] if isinstance(n, fx.Node) and is_empty(meta(n))]
        if 0 < len(empty) < len(node.args[0]):
            node.args = ([n for n in node.args[0] if n not in empty], *node.args[1:])
            for part in empty:
                if not part.users:
                    graph.erase_node(part)


def is_empty(value: Operand) -> bool:
    return isinstance(value, Tensor) and any(isinstance(n, int) and n == 0 for n in value.shape)


def inlined(node: fx.Node, whole: Callable[..., Operand], made: fx.GraphModule, of: dict[fx.Node, Operand]) -> Operand:
    """What stands for the node's value: a node, or several."""
    given = node.all_input_nodes

    def call(*values: Operand) -> Operand:
        known = dict(zip(given, values, strict=True))
        args, words = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        return whole(*args, **words)

    values = [meta(n) for n in given]
    mode = next((v.fake_mode for v in values if hasattr(v, "fake_mode")), contextlib.nullcontext())
    with torch.no_grad(), mode:
        traced = make_fx(call, pre_dispatch=True)(*values)
    inner, outer = dict[fx.Node, Operand](), iter(given)
    for own in traced.graph.nodes:
        if own.op == "placeholder":
            inner[own] = of[next(outer)]
        elif own.op == "output":
            return fx.node.map_arg(own.args[0], inner.__getitem__)
        else:
            inner[own] = made.graph.node_copy(own, inner.__getitem__)
            inner[own].meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
        if own.op == "get_attr":
            inner[own].target = f"{node.name}_{own.target}"
            made.register_buffer(inner[own].target, getattr(traced, own.target), persistent=False)
    raise AssertionError("a graph has an output")


def encoder_layer(
    x: Tensor, width: int, heads: int, packed: Tensor, packed_bias: Tensor, proj: Tensor, proj_bias: Tensor, gelu: bool,
    norm_first: bool, eps: float, scale1: Tensor, shift1: Tensor, scale2: Tensor, shift2: Tensor, up: Tensor, up_bias: Tensor,
    down: Tensor, down_bias: Tensor, mask: Tensor | None = None, kind: int | None = None,
) -> Tensor:  # fmt: skip
    """`nn.TransformerEncoderLayer` without gradients. A mask is of two tokens (kind 0), of padding (1), or of all (2)."""

    def attention(x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in functional.linear(x, packed, packed_bias).chunk(3, -1))
        hidden = None
        if mask is not None:  # booleans, or minus infinity, where nothing is seen
            hidden = torch.zeros_like(mask, dtype=x.dtype).masked_fill(mask.bool(), float("-inf"))
            hidden = hidden[:, None, None] if kind == 1 else hidden
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=hidden)
        return functional.linear(y.transpose(1, 2).flatten(2), proj, proj_bias)

    def ffn(x: Tensor) -> Tensor:
        h = functional.linear(x, up, up_bias)
        return functional.linear(functional.gelu(h) if gelu else functional.relu(h), down, down_bias)

    for part, scale, shift in ((attention, scale1, shift1), (ffn, scale2, shift2)):
        normed = functional.layer_norm(x, (width,), scale, shift, eps) if norm_first else x
        x = x + part(normed)
        x = x if norm_first else functional.layer_norm(x, (width,), scale, shift, eps)
    return x


def products(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, *,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """`scaled_dot_product_attention` in eval mode."""
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, float("-inf"))
    return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ v


WHOLE: dict[Operand, Callable[..., Operand]] = {
    functional.multi_head_attention_forward: functional.multi_head_attention_forward,
    torch._transformer_encoder_layer_fwd: encoder_layer,
}
