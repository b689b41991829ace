"""Whole attentions and encoder layers, one node to Dynamo, taken apart into their linears and products.

Each is traced by itself, on the fake values that Dynamo left at the nodes, and stands in the graph instead of its node.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from .classify import meta, op_name


def unpacked(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy to edit, which shares weights and fake values with the graph that was captured."""
    made = fx.GraphModule(gm, fx.Graph())
    of: dict[fx.Node, Any] = {}
    for node in gm.graph.nodes:
        whole = WHOLE.get(node.target) if node.op == "call_function" else None
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


def is_empty(value: Any) -> bool:
    return isinstance(value, Tensor) and any(isinstance(n, int) and n == 0 for n in value.shape)


def inlined(node: fx.Node, whole: Callable[..., Any], made: fx.GraphModule, of: dict[fx.Node, Any]) -> Any:
    """What stands for the node's value: a node, or several."""
    given = node.all_input_nodes

    def call(*values: Any) -> Any:
        known = dict(zip(given, values, strict=True))
        args, words = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        return whole(*args, **words)

    with torch.no_grad():
        traced = make_fx(call, pre_dispatch=True)(*[meta(n) for n in given])
    inner, outer = dict[fx.Node, Any](), iter(given)
    for own in traced.graph.nodes:
        if own.op == "placeholder":
            inner[own] = of[next(outer)]
        elif own.op == "output":
            return fx.node.map_arg(own.args[0], inner.__getitem__)
        else:
            inner[own] = made.graph.node_copy(own, inner.__getitem__)
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


WHOLE: dict[Any, Callable[..., Any]] = {
    functional.multi_head_attention_forward: functional.multi_head_attention_forward,
    torch._transformer_encoder_layer_fwd: encoder_layer,
}
