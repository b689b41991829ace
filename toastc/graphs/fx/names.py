"""Module paths from the traces that torch.export and Dynamo leave, and numbers behind symbolic sizes."""

from __future__ import annotations

import re

import torch
from torch import fx

from ...system.vocabulary import Operand

WRAPPED = re.compile(r"L\['self'\]\.?|_modules\['([^']*)'\]|\['([^']*)'\]|\[(\d+)\]")


def hint(size: Operand) -> Operand:
    """The number behind a symbolic size."""
    if isinstance(size, torch.SymInt):
        node: Operand = size.node
        value = node.hint
        return int(value if value is not None else node.shape_env.size_hint(node.expr))
    return tuple(hint(s) for s in size) if isinstance(size, tuple | list) else size


def owner_of(node: fx.Node) -> str:
    """The module a parameter belongs to: `blocks.0.attn` of `l_self_modules_blocks_modules_0_modules_attn_parameters_weight_`."""
    if node.op == "get_attr":
        return str(node.target).rpartition(".")[0]
    if node.op != "placeholder" or "_parameters_" not in node.name:
        return ""
    return ".".join(node.name.partition("_parameters_")[0].split("_modules_")[1:])


def module_path(node: fx.Node) -> str:
    """`blocks.0.attn` from `blocks.0.attn` (export) or `L['self'].blocks[0].attn` (Dynamo)."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    if path.startswith("L["):
        path = WRAPPED.sub(lambda m: next((g for g in m.groups() if g), "") and "." + next(g for g in m.groups() if g), path)
        path = re.sub(r"\.+", ".", path).strip(".")
    return "" if path.startswith("_empty") else path
