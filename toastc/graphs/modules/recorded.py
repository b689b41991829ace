"""How a model calls its modules, and which of a graph's values are the arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ...system.vocabulary import Inputs
from ..fx.probe import FxProbe
from .regions import NotTransplanted

APART = 1e-2  # relative, at most: a module called by itself rounds as it does in a graph, nearly


@dataclass(frozen=True, eq=False)
class Recorded:
    """Arguments by their names, as the module's forward has them, and what came of it."""

    arguments: Mapping[str, Any]
    out: Any

    @staticmethod
    def of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Recorded:
        try:
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
        except (TypeError, ValueError) as error:
            raise NotTransplanted(f"a {type(module).__name__} does not say what it takes ({error})") from error
        bound.apply_defaults()
        return Recorded(bound.arguments, out)

    def without_numbers(self) -> Recorded:
        made = pytree.tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, (dict(self.arguments), self.out))
        return Recorded(*made)

    @property
    def leaves(self) -> list[tuple[tuple[Any, ...], Any]]:
        """Every argument that is no container, and the way there: its name, then keys."""
        flat, _ = pytree.tree_flatten_with_path(dict(self.arguments))
        return [(tuple(getattr(key, "key", getattr(key, "idx", None)) for key in way), value) for way, value in flat]

    @property
    def plain(self) -> bool:
        """One tensor in, one out."""
        return [isinstance(value, torch.Tensor) for _, value in self.leaves] == [True] and isinstance(self.out, torch.Tensor)


def recorded(model: nn.Module, paths: Sequence[str], args: Inputs) -> dict[str, list[Recorded]]:
    """Every call of these modules, and of their parts, while the model runs. Of parts no tensor is kept."""
    calls: dict[str, list[Recorded]] = {}

    def keep(path: str, module: nn.Module, given: tuple[Any, ...], words: dict[str, Any], out: Any) -> None:
        call = Recorded.of(module, given, words, out)
        calls[path].append(call if path in paths else call.without_numbers())

    hooks = []
    for name in dict.fromkeys(name for path in paths for name, _ in model.get_submodule(path).named_modules(prefix=path)):
        calls[name] = []
        hooks.append(model.get_submodule(name).register_forward_hook(partial(keep, name), with_kwargs=True))
    try:
        with torch.no_grad():
            model(*args)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def another_batch(gm: fx.GraphModule, args: Inputs) -> Inputs:
    """One more of everything that comes in a batch of any size."""
    leaves, spec = pytree.tree_flatten(tuple(args))
    for n, node in enumerate(node for node in gm.graph.nodes if node.op == "placeholder"):
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.ndim and isinstance(value.shape[0], torch.SymInt):
            leaves[n] = torch.cat([leaves[n], leaves[n][:1]])
    made: Inputs = pytree.tree_unflatten(leaves, spec)
    return made


@torch.no_grad()
def values_of(gm: fx.GraphModule, names: set[str], args: Inputs) -> dict[str, Any]:
    """Of the nodes of these names, while the graph runs."""
    nodes = [node for node in gm.graph.nodes if node.name in names]
    probe = FxProbe(gm, (), nodes)
    probe.run(*pytree.tree_leaves(args), enable_io_processing=False)
    return {node.name: probe.seen[node] for node in nodes}


def find(value: Any, among: Sequence[Any], what: str) -> int:
    """Which of these a tensor is: the nearest, if it is near."""
    off = [difference(value, other) for other in among]
    best = min(range(len(off)), key=off.__getitem__, default=None)
    if best is None or off[best] > APART:
        raise NotTransplanted(what)
    return best


def difference(a: Any, b: Any) -> float:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor) or a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if not (a.is_floating_point() or a.is_complex()) or not a.numel():
        return 0.0 if torch.equal(a, b) else float("inf")
    a, b = (torch.nan_to_num((torch.view_as_real(x) if x.is_complex() else x).detach().float()) for x in (a, b))
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))
