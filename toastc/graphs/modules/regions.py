"""Which of a graph's nodes are the code of which module, and which modules do something now that they did not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ..fx.names import module_path

AGAIN = re.compile(r"@\d+")  # torch.export's mark of a module that is called once more
PATH = "toastc_path"  # in the meta of a node
SAME = {"aten.view.default": "aten.reshape.default"}  # names of one operation
Said = tuple[str, str]


class NotTransplanted(Exception):
    """Why a graph stays a graph."""


@dataclass(frozen=True, eq=False)
class Region:
    """The nodes of a module: the tensors that they read from outside, weights of their own aside, and those that are read of
    them outside.
    """

    path: str
    nodes: tuple[fx.Node, ...]
    given: tuple[fx.Node, ...]
    made: tuple[fx.Node, ...]

    @staticmethod
    def of(gm: fx.GraphModule, path: str) -> Region:
        nodes = tuple(n for n in gm.graph.nodes if n.op == "call_function" and is_inside(path_of(n), path))
        own = set(nodes)
        read = dict.fromkeys(a for n in nodes for a in n.all_input_nodes)
        known = {n for n in read if is_number(n) or (n.op == "get_attr" and is_own(gm, n, path, own))} | own
        made = tuple(n for n in nodes if not is_number(n) and any(user not in own for user in n.users))
        return Region(path, nodes, tuple(n for n in read if n not in known), made)


def is_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), int | float | torch.SymInt | torch.SymFloat)


def is_own(gm: fx.GraphModule, tensor: fx.Node, path: str, nodes: set[fx.Node]) -> bool:
    """Of the module, by its name or because nobody else reads it; numbers that nobody learns may be anyone's."""
    named, learnt = is_inside(parent(str(tensor.target)), path), isinstance(tensor_of(gm, tensor), nn.Parameter)
    return named or not learnt or nodes.issuperset(tensor.users)


def tensor_of(gm: nn.Module, node: fx.Node) -> torch.Tensor:
    found: torch.Tensor = attrgetter(str(node.target))(gm)
    return found


def path_of(node: fx.Node) -> str:
    """Of the innermost module whose code a node is; it is asked for often, and remembered."""
    if PATH not in node.meta:
        node.meta[PATH] = AGAIN.sub("", module_path(node))
    return str(node.meta[PATH])


def is_inside(path: str, module: str) -> bool:
    return not module or path == module or path.startswith(f"{module}.")


def parent(path: str) -> str:
    return path.rpartition(".")[0]


def rewritten(model: nn.Module, dense: fx.GraphModule, pruned: fx.GraphModule) -> list[str]:
    """Modules whose own code is another than before, or reads other constants. What only went does not count, and neither does
    a module that reads all its sizes from its weights.
    """
    before, after = code_of(dense), code_of(pruned)
    found: list[str] = []
    for path, own in after.items():
        known = before.get(path, Counter())
        other = {name for name, _ in own} - {name for name, _ in known}
        if other or (own - known and not fits_its_weights(model, path)):
            found.append(path)
    return list(dict.fromkeys([*found, *readers_of_constants(model, dense, pruned)]))


def readers_of_constants(model: nn.Module, dense: fx.GraphModule, pruned: fx.GraphModule) -> Iterator[str]:
    """Modules that read numbers of no name, made in their code, which are others by now."""
    named, before = tensors_of(model), {n.target: n for n in dense.graph.nodes if n.op == "get_attr"}
    for node in pruned.graph.nodes:
        if node.op == "get_attr" and node.target not in named:
            old, new = before.get(node.target), tensor_of(pruned, node)
            if old is None or not torch.equal(tensor_of(dense, old), new):
                yield from (path_of(user) for user in node.users if not fits_its_weights(model, path_of(user)))


def code_of(gm: fx.GraphModule) -> dict[str, Counter[Said]]:
    """What each module does by itself: how often which operation, whatever tensors it reads."""
    found: dict[str, Counter[Said]] = {}
    for node in gm.graph.nodes:
        if node.op == "call_function":
            found.setdefault(path_of(node), Counter())[said(node)] += 1
    return found


def said(node: fx.Node) -> Said:
    plain = pytree.tree_map(lambda a: "tensor" if isinstance(a, fx.Node) else a, (list(node.args), dict(node.kwargs)))
    return SAME.get(str(node.target), str(node.target)), str(plain)


def fits_its_weights(model: nn.Module, path: str) -> bool:
    """A linear, a norm: its code is right for weights of any size."""
    module = model.get_submodule(path)
    return bool(path) and not list(module.children()) and bool(sizes_of(module))


def sizes_of(module: nn.Module) -> dict[str, object]:
    """What a module says of its weight's sizes, by the weight it has."""
    if isinstance(module, nn.MultiheadAttention):  # the layer around it asks whether torch's kernel for whole layers takes it
        return {"_qkv_same_embed_dim": is_square(module)}
    if isinstance(module, nn.TransformerEncoder):
        square = all(is_square(part) for part in module.modules() if isinstance(part, nn.MultiheadAttention))
        return {"use_nested_tensor": module.use_nested_tensor and square}
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        return {}
    if isinstance(module, nn.Linear):
        return {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    return {"normalized_shape": tuple(weight.shape)} if hasattr(module, "normalized_shape") else {}


def is_square(attention: nn.MultiheadAttention) -> bool:
    packed = attention.in_proj_weight
    return packed is not None and bool(packed.shape[0] == 3 * attention.embed_dim)


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Under all their names."""
    return dict(chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)))
