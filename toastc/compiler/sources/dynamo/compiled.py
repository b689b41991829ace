"""The callable that stands for a captured graph, whatever weights it is called with."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ....graphs.fx.capture import is_weight
from ....system.vocabulary import Inputs
from ...options import Options
from .instance import Instance

log = logging.getLogger("toastc")


class Compiled:
    """Dynamo hands weights over as inputs, and has one graph for all blocks that are alike where it is called block by block."""

    def __init__(self, gm: fx.GraphModule, example_inputs: Inputs, options: Options, session: int) -> None:
        self.gm, self.options, self.session = gm, options, session
        self.weights = [i for i, v in enumerate(example_inputs) if is_weight(v)]
        self.needs_grad = any(isinstance(v, torch.Tensor) and v.requires_grad for v in example_inputs)
        self.instances: dict[tuple[int, ...], Instance] = {}  # by the identity of the weights
        self.instance(example_inputs)

    def __call__(self, *inputs: Any) -> Any:
        out = self.instance(inputs)(inputs)
        if self.needs_grad and torch.is_grad_enabled():
            anchor = torch.zeros((), requires_grad=True)
            return pytree.tree_map(lambda t: NoGradient.apply(t, anchor) if is_float(t) else t, out)
        return out

    def instance(self, inputs: Inputs) -> Instance:
        key = tuple(id(inputs[i]) for i in self.weights)
        found = self.instances.get(key)
        if found is not None and found.alive:
            if found.versions == [inputs[i]._version for i in self.weights]:
                return found
            log.warning("toastc: weights changed since they were compiled; beginning anew")
        self.instances = {known: each for known, each in self.instances.items() if each.alive}
        made = Instance(self.gm, inputs, self.weights, self.options, self.session)
        self.instances[key] = made
        return made


class NoGradient(torch.autograd.Function):
    """Passes a tensor on, and explains itself when somebody wants its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError("toastc compiles for inference: its graphs have no gradient; train toastc.prune(model).model instead")


def is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
