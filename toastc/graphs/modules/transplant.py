"""A smaller graph, put back into the model it was captured from.

Weights are replaced under their names. Where a module's code has sizes in it that are no longer true, its forward is written
anew from the nodes that `nn_module_stack` says are its own; all else is a copy of the user's model: classes, methods, hooks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn

from ...system.vocabulary import Inputs
from ..fx.editor import has_effect
from ..fx.reopen import drop_idle_masks
from .forward import Writing
from .recorded import Recorded, another_batch, recorded, values_of
from .regions import NotTransplanted, Region, is_inside, parent, path_of, rewritten, sizes_of, tensor_of, tensors_of
from .written import with_forward

SLOTS = {1: "weight", 2: "bias"}  # of a linear


def transplanted(model: nn.Module, dense: fx.GraphModule, pruned: fx.GraphModule, args: Inputs) -> nn.Module:
    """`dense` and `pruned` are graphs of the model, before and after; the model that comes back has the weights of `pruned`."""
    if drop_idle_masks(pruned, lambda node: tensor_of(pruned, node)):  # made where a model is traced, not where it is called
        pruned.graph.eliminate_dead_code(has_effect)
    writings = to_write(model, dense, pruned, args)
    made = with_weights(model, pruned)
    for writing in writings:
        module = made.get_submodule(writing.region.path)
        for node, name in writing.constants.items():
            hold(module, name, tensor_of(pruned, node))
        with_forward(module, writing.text)
    return made


def hold(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """What is learnt goes on learning."""
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor, persistent=False)


def to_write(model: nn.Module, dense: fx.GraphModule, pruned: fx.GraphModule, args: Inputs) -> list[Writing]:
    """What is to be written anew. A module that is not cut off from the rest by its arguments gives way to the one around it."""
    changed = paths = rewritten(model, dense, pruned)
    found: dict[str, Writing] = {}
    while paths:
        regions = [Region.of(pruned, path) for path in sorted(paths, key=len, reverse=True)]  # those inside others first
        calls = recorded(model, paths, args)
        others = recorded(model, paths, another_batch(dense, args)) if any(map(takes_numbers, calls.values())) else calls
        values = values_of(dense, {n.name for region in regions for n in (*region.given, *region.made)}, args)
        wider: list[str] = []
        for region in regions:
            whole = whole_parts(model, pruned, region.path, calls, [path for path in changed if path not in found])
            try:
                check_forward_is_all(model, region.path)
                found[region.path] = Writing.of(model, region, calls[region.path], others[region.path], values, whole)
            except NotTransplanted as why:
                wider.append(around(model, region.path, why))
        paths = [path for path in dict.fromkeys(wider) if path not in found]
    return list(found.values())


def takes_numbers(calls: Sequence[Recorded]) -> bool:
    """Whole ones, which may be how many images there are."""
    return any(type(value) is int for call in calls for _, value in call.leaves)


def check_forward_is_all(model: nn.Module, path: str) -> None:
    """The model's own forward is written anew where there is nothing beside it."""
    kinds = [kind for kind in type(model).__mro__ if kind not in nn.Module.__mro__]
    others = [
        n for kind in kinds for n, what in vars(kind).items() if callable(what) and not n.startswith("_") and n != "forward"
    ]
    if not path and others:
        raise NotTransplanted(f"sizes that change are in its own code, and {others[0]} would not know of them")


def around(model: nn.Module, path: str, why: NotTransplanted) -> str:
    """The module around this one, unless that is the whole model: its other methods would no longer fit."""
    path = parent(path)
    while path and isinstance(model.get_submodule(path), nn.ModuleList | nn.ModuleDict):  # which are never called
        path = parent(path)
    if not path:
        raise why
    return path


def whole_parts(
    model: nn.Module, pruned: fx.GraphModule, path: str, calls: Mapping[str, Sequence[Recorded]], wrong: Sequence[str]
) -> dict[fx.Node, Region]:
    """Parts of a module that are called as they are, by what they make: one tensor of one tensor. `wrong` is code as it was."""
    found: dict[fx.Node, Region] = {}
    for name, _ in model.get_submodule(path).named_modules(prefix=path):
        own = calls[name]
        if name == path or len(own) != 1 or not own[0].plain or any(is_inside(other, name) for other in wrong):
            continue
        region = Region.of(pruned, name)
        if len(region.given) == len(region.made) == 1 and not any(is_inside(name, part.path) for part in found.values()):
            found[region.made[0]] = region
    return found


def with_weights(model: nn.Module, pruned: fx.GraphModule) -> nn.Module:
    """A copy of the model. Weights that the graph reads are not copied: the copy has the graph's."""
    named = tensors_of(model)
    read = [n for n in pruned.graph.nodes if n.op == "get_attr"]
    try:
        made = copy.deepcopy(model, {id(named[n.target]): tensor_of(pruned, n) for n in read if n.target in named})
    except (TypeError, RuntimeError, copy.Error) as error:
        raise NotTransplanted(f"it can not be copied ({str(error).splitlines()[0]})") from error
    for node in read:
        for user in node.users if node.target not in named else ():  # what a linear did not have before
            module = made.get_submodule(path_of(user))
            if isinstance(module, nn.Linear) and user.target is torch.ops.aten.linear.default:
                setattr(module, SLOTS[user.args.index(node)], nn.Parameter(tensor_of(pruned, node).detach()))
    for module in made.modules():
        for name, size in sizes_of(module).items():
            setattr(module, name, size)
    return made
