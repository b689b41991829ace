"""What a node calls, and with which tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from ...system.vocabulary import Inputs, Operand, Read
from .classify import meta


@dataclass(frozen=True)
class Call:
    """A call apart from its node, which edits may change."""

    target: Operand
    args: Inputs
    kwargs: Read
    method: bool

    @staticmethod
    def of(node: fx.Node) -> Call:
        return Call(node.target, node.args, node.kwargs, node.op == "call_method")

    def run(self, value: Callable[[fx.Node], Operand]) -> Operand:
        args, kwargs = fx.node.map_arg((self.args, self.kwargs), value)
        return getattr(args[0], self.target)(*args[1:], **kwargs) if self.method else self.target(*args, **kwargs)


def tensor_args(node: fx.Node) -> list[fx.Node]:
    """The tensor operands in order of appearance, repeated ones repeated."""
    found: list[fx.Node] = []

    def note(arg: fx.Node) -> fx.Node:
        if isinstance(meta(arg), torch.Tensor):
            found.append(arg)
        return arg

    fx.node.map_arg((node.args, node.kwargs), note)
    return found
