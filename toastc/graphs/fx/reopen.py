"""An edited fx graph, looked at afresh: shapes are found by running it on fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from ...system.errors import CannotShrink
from ...system.vocabulary import Operand
from .calls import Call
from .classify import meta, op_name, writes

aten = torch.ops.aten
Reading = tuple[Operand, ...]


def propagate(gm: fx.GraphModule, as_read: Mapping[fx.Node, Reading]) -> None:
    """On inputs of the sizes the graph was captured with, free ones included."""
    given = [meta(n) for n in gm.graph.nodes if n.op == "placeholder"]
    mode = next((v.fake_mode for v in given if hasattr(v, "fake_mode")), None)
    prop = Reopening(gm, mode, as_read)
    if mode is not None:
        mode.allow_non_fake_inputs = True
    try:
        with enable_python_dispatcher():  # without it some operators take no sizes that are symbols
            prop.propagate_dont_convert_inputs(*given)
    except RuntimeError as error:
        raise CannotShrink(f"the sizes in the edited graph can not be told ({str(error).splitlines()[0]})") from error


class Reopening(FakeTensorProp):
    """Numbers that are read from tensors stay what they were when the graph was captured: a fake tensor holds none.
    And so does the shape of what is as it was read, and reads only what is.
    """

    def __init__(self, gm: fx.GraphModule, mode: FakeTensorMode | None, as_read: Mapping[fx.Node, Reading] | None = None) -> None:
        super().__init__(gm, mode)
        self.as_read, self.same = as_read or {}, set[fx.Node]()

    def run_node(self, n: fx.Node) -> Operand:
        if n in self.as_read and self.as_read[n] == reading(n) and self.same.issuperset(n.all_input_nodes):
            self.same.add(n)
            return super().run_node(n) if n.op == "placeholder" else meta(n)
        number = meta(n) if n.op != "output" and op_name(n) == "item" else None
        unknown = isinstance(number, torch.SymInt | torch.SymFloat) and number.node.shape_env is not self._mode.shape_env
        return super().run_node(n) if number is None or unknown else number


def reading(node: fx.Node) -> Reading | None:
    """What tells one node from another, once views are reshapes; None where it does not tell the shape."""
    if meta(node) is None:
        return None
    if node.op == "get_attr":
        tensor = attrgetter(str(node.target))(node.graph.owning_module)
        return id(tensor), tensor.shape  # the graph that was read keeps its tensors
    if node.op not in ("placeholder", "call_function", "call_method"):
        return None
    target = aten.reshape.default if node.target is aten.view.default else "reshape" if node.target == "view" else node.target
    return node.op, target, node.args, node.kwargs


def given_mask(node: fx.Node) -> Operand:
    """Of `scaled_dot_product_attention`."""
    return node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")


def drop_idle_masks(gm: fx.GraphModule, constant: Callable[[fx.Node], torch.Tensor]) -> bool:
    """Attentions without the masks that hide nothing, given or added; was there any?"""
    filled = filled_in_place(gm.graph)
    added = [n for n in gm.graph.nodes if n.op == "call_function" and op_name(n) == "add" and len(n.all_input_nodes) == 2]
    for node in added:
        scores, mask = node.args
        known = all(isinstance(meta(n), torch.Tensor) for n in (scores, mask, node))
        if known and meta(scores).shape == meta(node).shape and is_idle(mask, constant, filled):
            node.replace_all_uses_with(scores)
    idle = [n for n in gm.graph.nodes if n.op == "call_function" and op_name(n) == "scaled_dot_product_attention"]
    idle = [n for n in idle if isinstance(given_mask(n), fx.Node) and is_idle(given_mask(n), constant, filled)]
    for node in idle:
        mask = given_mask(node)
        args = [None if a is mask else a for a in node.args]
        node.args, node.kwargs = tuple(args), {k: v for k, v in node.kwargs.items() if v is not mask}
    return bool(idle) or any(not node.users for node in added)


def filled_in_place(graph: fx.Graph) -> set[fx.Node]:
    """Tensors that are written into after they are made, they or a view of them: shifted windows make their masks so."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        into = node.args[0] if writes(node) and node.args else None
        while isinstance(into, fx.Node) and into not in found:
            found.add(into)
            into = into.args[0] if into.args else None
    return found


def is_idle(mask: fx.Node, constant: Callable[[fx.Node], torch.Tensor], filled: set[fx.Node]) -> bool:
    """Does a mask that is made of sizes and constants allow everything? Transformers makes such ones."""

    def value(node: fx.Node) -> Operand:
        if node in filled:
            raise LookupError(node.name)
        if node.op == "get_attr" and not isinstance(constant(node), torch.nn.Parameter):  # what is learnt may change
            return constant(node)
        if node.target is aten.sym_size.int:
            return int(meta(node.args[0]).shape[node.args[1]])
        if node.op != "call_function":
            raise LookupError(node.name)
        return Call.of(node).run(value)

    try:
        made = value(mask)
    except LookupError:
        return False
    return isinstance(made, torch.Tensor) and bool(made.all() if made.dtype is torch.bool else not made.any())
