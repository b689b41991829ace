"""The forward of a module, written anew: the nodes of its region, as code that calls its parts by their names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ..fx.classify import writes
from .recorded import Recorded, find
from .regions import NotTransplanted, Region, is_inside, is_number, tensors_of
from .spelling import spelled

aten = torch.ops.aten
FREED = re.compile(r";  (?:\w+ = )+None")  # what fx writes where a name is read for the last time
PLAIN = (bool, int, float, str)


@dataclass
class Writing:
    """One module's forward. `whole` are parts that are called by their names: the node that each makes, and its region."""

    model: nn.Module
    region: Region
    call: Recorded
    other: Recorded  # with another batch
    values: Mapping[str, Any]  # of the dense graph's nodes
    whole: Mapping[fx.Node, Region]
    graph: fx.Graph = field(default_factory=fx.Graph)
    here: dict[fx.Node, Any] = field(default_factory=dict)
    constants: dict[fx.Node, str] = field(default_factory=dict)  # the module is to hold them, by these names
    sizes: dict[Any, fx.Node] = field(default_factory=dict)  # by the tensor and the axis they were read of
    text: str = ""

    @staticmethod
    def of(
        model: nn.Module, region: Region, calls: Sequence[Recorded], others: Sequence[Recorded], values: Mapping[str, Any],
        whole: Mapping[fx.Node, Region],
    ) -> Writing:  # fmt: skip
        if len(calls) != 1:
            raise NotTransplanted(f"{region.path} is called {len(calls)} times")
        made = Writing(model, region, calls[0], others[0], values, whole)
        made.write()
        return made

    def write(self) -> None:
        names = self.arguments()
        hidden = {n for part in self.whole.values() for n in part.nodes}
        for node in self.region.nodes:
            part = self.whole.get(node)
            if part is not None:
                self.here[node] = self.graph.call_module(self.own(part.path), (self.read(part.given[0]),))
            elif node not in hidden:
                args, words = fx.node.map_arg((node.args, node.kwargs), self.read)
                known = self.sizes.get(args) if node.target is aten.sym_size.int else None
                self.here[node] = spelled(self.graph, node, args, words) if known is None else known
                if node.target is aten.sym_size.int:
                    self.sizes[args] = self.here[node]
        self.graph.output(self.results())
        drop_unread(self.graph)
        self.text = self.printed(names)

    def own(self, path: str) -> str:
        return path.removeprefix(f"{self.region.path}.") if self.region.path else path

    # ---- what it reads ---------------------------------------------------------------------------------------------

    def arguments(self) -> dict[fx.Node, str]:
        """The tensors among the arguments that the region reads, and how each is got at."""
        leaves = [(way, value) for way, value in self.call.leaves if isinstance(value, torch.Tensor)]
        names: dict[fx.Node, str] = {}
        for node in self.region.given:
            what = f"{self.region.path} reads {node.name}, which is none of its arguments"
            only = len(self.region.given) == len(leaves) == 1 and node.name not in self.values
            way = leaves[0 if only else find(self.values.get(node.name), [value for _, value in leaves], what)][0]
            text = expression(self.variadic, way)
            known = next((n for n, said in names.items() if said == text), None)
            if known is None:
                known = self.graph.placeholder("_".join(re.sub(r"\W", "_", str(key)) for key in way))
                names[known] = text
            self.here[node] = known
        return names

    @property
    def variadic(self) -> str:
        """What the forward calls its further keywords."""
        parameters = inspect.signature(self.module.forward).parameters.values()
        return next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), "")

    @property
    def module(self) -> nn.Module:
        return self.model.get_submodule(self.region.path)

    def read(self, node: fx.Node) -> Any:
        if node not in self.here:
            self.here[node] = self.size(node) if is_number(node) else self.weight(node)
        return self.here[node]

    def weight(self, node: fx.Node) -> fx.Node:
        """By a name that it has in the module; what the module does not know becomes a constant of its own."""
        if node.op != "get_attr":
            raise NotTransplanted(f"{self.region.path} reads {node.name} before it is made")
        name, known = str(node.target), self.named
        if name in known and is_inside(name, self.region.path):
            return self.graph.get_attr(self.own(name))
        same = [other for other in known if name in known and known[other] is known[name] and is_inside(other, self.region.path)]
        if same:
            return self.graph.get_attr(self.own(same[0]))
        if isinstance(known.get(name), nn.Parameter):
            raise NotTransplanted(f"{self.region.path} reads {name}, a weight of another module")
        stem = name.rpartition(".")[2].removeprefix(f"{self.region.path.replace('.', '_')}_")
        taken = set(self.constants.values())
        free = (t for t in (stem, *(f"{stem}_{n}" for n in range(1, 1000))) if not hasattr(self.module, t) and t not in taken)
        return self.graph.get_attr(self.constants.setdefault(node, next(free)))

    @cached_property
    def named(self) -> dict[str, torch.Tensor]:
        return tensors_of(self.model)

    def size(self, node: fx.Node) -> fx.Node:
        """A size that was read elsewhere, read of an argument, or made of such again."""
        symbol = str(node.meta["val"])
        for given in self.region.given:
            value = given.meta.get("val")
            for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
                if str(size) == symbol:
                    at = self.here[given], axis
                    return self.sizes.setdefault(at, self.sizes.get(at) or self.graph.call_method("size", at))
        if node.op != "call_function" or not all(map(is_number, node.all_input_nodes)):
            raise NotTransplanted(f"{self.region.path} needs the size {symbol}, which none of its arguments has")
        return self.graph.node_copy(node, self.read)

    # ---- what it returns -------------------------------------------------------------------------------------------

    def results(self) -> Any:
        """In the order and the containers of the module's own; what nobody reads of them is None."""
        leaves, spec = pytree.tree_flatten(self.call.out)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        made = [self.values.get(n.name) for n in self.region.made]
        found: list[Any] = []
        for leaf in leaves:
            if not isinstance(leaf, torch.Tensor):
                found.append(leaf)
            elif len(tensors) == len(made) == 1:
                found.append(self.here[self.region.made[0]])
            else:
                found.append(self.here[self.region.made[at]] if (at := near(leaf, made)) is not None else None)
        missing = set(self.region.made) - {n for n in self.region.made if self.here[n] in found}
        if missing:
            raise NotTransplanted(f"{self.region.path}: {min(n.name for n in missing)} is read elsewhere, but not returned")
        if not is_spelled(self.call.out):
            raise NotTransplanted(f"{self.region.path} returns a {type(self.call.out).__name__}")
        return pytree.tree_unflatten(found, spec)

    # ---- the text --------------------------------------------------------------------------------------------------

    def printed(self, names: Mapping[fx.Node, str]) -> str:
        text = self.graph.python_code("self").src
        lines = text[text.index("def forward") :].splitlines()[1:]
        head = [f"def forward({', '.join(header(inspect.signature(self.module.forward)))}):", *self.refusals()]
        head += [f"    {node.name} = {text}" for node, text in names.items() if node.name != text]
        return "\n".join([*head, *(FREED.sub("", line).rstrip() for line in lines if line.strip())]) + "\n"

    def refusals(self) -> list[str]:
        """What was fixed when the model was captured can not be asked for any more. Numbers that follow the batch were not."""
        other = dict(self.other.leaves)
        leaves = [(way, v) for way, v in self.call.leaves if v is None or (type(v) in PLAIN and other.get(way) == v)]
        fixed = [(expression(self.variadic, way), value) for way, value in leaves]
        if not fixed:
            return []
        same = " and ".join(f"is_nothing({text})" if value is None else f"{text} == {value!r}" for text, value in fixed)
        said = ", ".join(f"{text}={value!r}" for text, value in fixed)
        why = f"{{type(self).__name__}} was made smaller for {quoted(said)}"
        return [f"    if not ({same}):", f'        raise ValueError(f"{why}")']


def quoted(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}").replace('"', "'")


def expression(variadic: str, way: Sequence[Any]) -> str:
    """`x`, `position_embeddings[0]`, `kwargs['cu_seqlens']`."""
    if len(way) == 2 and way[0] == variadic:
        return f"{way[0]}.get({way[1]!r})"
    return str(way[0]) + "".join(f"[{key!r}]" for key in way[1:])


def header(signature: inspect.Signature) -> list[str]:
    """Parameters as they were, without what needs to be imported."""
    plain, written, only = inspect.Parameter, ["self"], False
    for p in signature.parameters.values():
        if p.kind is plain.KEYWORD_ONLY and not only:
            written.append("*")
        only |= p.kind in (plain.KEYWORD_ONLY, plain.VAR_POSITIONAL)
        stars = "*" if p.kind is plain.VAR_POSITIONAL else "**" if p.kind is plain.VAR_KEYWORD else ""
        default = "" if p.default is plain.empty else f"={p.default!r}" if type(p.default) in PLAIN else "=None"
        written.append(f"{stars}{p.name}{default}")
    return written


def is_spelled(out: Any) -> bool:
    """Can it be written with brackets?"""
    if isinstance(out, tuple | list | dict):
        return type(out) in (tuple, list, dict) and all(map(is_spelled, out.values() if isinstance(out, dict) else out))
    return type(out) not in pytree.SUPPORTED_NODES


def near(value: Any, among: Sequence[Any]) -> int | None:
    try:
        return find(value, among, "")
    except NotTransplanted:
        return None


def drop_unread(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if not node.users and not writes(node) and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
