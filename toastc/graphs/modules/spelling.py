"""Operators as one would write them in a module's code."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import functional

aten = torch.ops.aten
SIGNS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "matmul": operator.matmul,
    "neg": operator.neg,
}  # fmt: skip
FUNCTIONS = {"scaled_dot_product_attention": 6, "linear": 3, "layer_norm": 5, "gelu": 1, "dropout": 3}  # by place
JOINS = ("cat", "stack")


def spelled(graph: fx.Graph, node: fx.Node, args: tuple[Any, ...], words: dict[str, Any]) -> fx.Node:
    """The node as one would write it: a sign, a method, a function of torch.nn.functional; as it is where there is none."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return graph.call_function(target, args, words)
    name, taken = target.overloadpacket.__name__, target._schema.arguments
    if name in SIGNS and not words and len(args) <= 2:
        return graph.call_function(SIGNS[name], args)
    if name == "index" and len(args[1]) == 1:
        return graph.call_function(operator.getitem, (args[0], args[1][0]))
    if name == "sym_size":
        return graph.call_method("size", args)
    if target is aten.view.default:
        return graph.call_method("reshape", args)
    if len(args) <= FUNCTIONS.get(name, -1):
        return graph.call_function(getattr(functional, name), args, words)
    if name in JOINS:
        return graph.call_function(getattr(torch, name), args, words)
    if taken and taken[0].name == "self" and hasattr(torch.Tensor, name) and name != "index":
        return graph.call_method(name, args, words)
    return graph.call_function(target, args, words)
