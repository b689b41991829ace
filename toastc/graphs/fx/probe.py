"""Running an fx graph with its inner tensors in view."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import fx

from ...system.vocabulary import Operand
from .. import Tensors, Value
from .classify import meta
from .names import hint


class FxProbe(fx.Interpreter):
    """`probe(feed)`: the model's outputs and the watched tensors, which stay on their device."""

    def __init__(self, gm: fx.GraphModule, inputs: Sequence[fx.Node], watch: Sequence[Value]) -> None:
        super().__init__(gm)
        self.inputs, self.watch = list(inputs), list(watch)
        self.nudges: Mapping[Value, np.ndarray] = {}
        self.seen: dict[Value, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Operand:
        made = super().run_node(n)
        if n in self.nudges:
            made = made + torch.from_numpy(np.ascontiguousarray(self.nudges[n])).to(made)
        if n in self.watch:
            self.seen[n] = made
        return made

    def __call__(self, feed: Mapping[str, np.ndarray], nudges: Mapping[Value, np.ndarray] | None = None) -> Tensors:
        given = placed(self.module, self.inputs, feed)
        self.nudges, self.seen = nudges or {}, {}
        args = [given.get(n) for n in self.graph.nodes if n.op == "placeholder"]
        with torch.no_grad():
            made = self.run(*args)
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        return leaves, [self.seen[n] for n in self.watch]


def placed(gm: torch.nn.Module, inputs: Sequence[fx.Node], feed: Mapping[str, np.ndarray]) -> dict[Value, Operand]:
    """The inputs where the weights are, and of their type."""
    like = next((t for t in gm.parameters() if t.is_floating_point()), torch.zeros(()))
    own = {n: torch.from_numpy(np.ascontiguousarray(feed[str(n.name)])).to(like.device) for n in inputs if n.name in feed}
    given = {n: t.to(like.dtype) if t.is_floating_point() else t for n, t in own.items()}
    return given | {n: n.meta["given"] for n in inputs if n not in given} | dict(numbers(gm, given))


def numbers(gm: torch.nn.Module, given: Mapping[fx.Node, torch.Tensor]) -> Iterator[tuple[Value, Operand]]:
    """Inputs that are the sizes of others, as Dynamo has them; what else is a number stays what it was."""
    sizes = {str(d): size for n, t in given.items() for d, size in zip(meta(n).shape, t.shape, strict=True)}
    for node in gm.graph.nodes:  # type: ignore[union-attr]
        if node.op == "placeholder" and isinstance(meta(node), torch.SymInt):
            yield node, sizes.get(str(meta(node)), hint(meta(node)))


class FxSlopes(FxProbe):
    """`slopes(feed, seed)`: the watched tensors and what an output, weighted with noise, gains when they grow."""

    def run_node(self, n: fx.Node) -> Operand:
        made = super().run_node(n)
        if n in self.watch and made.requires_grad:
            made.retain_grad()
        return made

    def slopes(self, feed: Mapping[str, np.ndarray], seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        self.seen = {}
        given = placed(self.module, self.inputs, feed)
        given = {n: t.requires_grad_() if t.is_floating_point() else t for n, t in given.items()}
        with torch.enable_grad():
            made = self.run(*[given.get(n) for n in self.graph.nodes if n.op == "placeholder"])
            leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(made) if isinstance(leaf, torch.Tensor)]
            noise = torch.Generator(leaves[0].device).manual_seed(seed)
            total = torch.zeros((), device=leaves[0].device)
            for leaf in leaves:
                if leaf.requires_grad:
                    draw = torch.randn(leaf.shape, generator=noise, device=leaf.device, dtype=leaf.dtype)
                    total = total + (leaf * draw).sum()
        total.backward()
        tensors = [self.seen[n] for n in self.watch]
        return [t.detach() for t in tensors], [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]
