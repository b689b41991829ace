"""New calls and new tensors in an fx graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from ...system.vocabulary import Operand
from .. import Op


class Nodes:
    """Puts them right before the op they are made for, in the module that its path names."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.counter = 0

    def fresh(self, stem: str) -> str:
        """A name that the module does not use."""
        name = stem
        while hasattr(self.gm, name):
            self.counter += 1
            name = f"{stem}_{self.counter}"
        return name

    def install(self, name: str, tensor: torch.Tensor, parameter: bool = False, grad: bool = False) -> None:
        owner, _, leaf = name.rpartition(".")
        module = self.gm.get_submodule(owner)
        if parameter:
            module._parameters.pop(leaf, None)
            module.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=grad and tensor.is_floating_point()))
        else:
            module._buffers.pop(leaf, None)
            if hasattr(module, leaf):
                delattr(module, leaf)
            module.register_buffer(leaf, tensor)

    def hold(self, tensor: torch.Tensor, name: str, before: fx.Node) -> fx.Node:
        """A buffer, and the node that reads it."""
        self.install(name, tensor)
        with self.gm.graph.inserting_before(before):
            node = self.gm.graph.get_attr(name)
        node.meta["val"] = tensor
        return node

    def positions(self, index: np.ndarray, stem: str, before: fx.Node, device: torch.device) -> fx.Node:
        tensor = torch.from_numpy(np.array(index, np.int64)).to(device if device.type != "meta" else "cpu")
        return self.hold(tensor, self.fresh(stem), before)

    def call(self, target: Operand, args: tuple[Operand, ...], before: Op, method: bool = False, **words: Operand) -> fx.Node:
        with self.gm.graph.inserting_before(before.node):
            node = (self.gm.graph.call_method if method else self.gm.graph.call_function)(target, args, words)
        if "nn_module_stack" in before.node.meta:
            node.meta["nn_module_stack"] = before.node.meta["nn_module_stack"]
        return node
