"""Fewer tokens, as torch functions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from ...system.errors import CannotShrink
from .. import Op, Value
from .calls import Call
from .classify import meta, op_name
from .edit import has_effect
from .pen import FxPen
from .select import current

if TYPE_CHECKING:
    from .adapter import FxGraph

aten = torch.ops.aten
Reading = tuple[Any, ...]


class FxTokens:
    """The verbs of the protocol that merge tokens."""

    gm: fx.GraphModule
    ops: list[Op]
    bound: dict[fx.Node, torch.Tensor]
    _as_read: Mapping[fx.Node, Reading]
    _call: Callable[..., fx.Node]
    _fresh: Any
    _install: Any
    _numbers: Any
    redirect: Any
    tensor: Any
    _users: dict[Value, list[tuple[Op, int]]]

    def pick(self, value: Value, axis: int, index: np.ndarray, like: Op) -> Value:
        return self._call(aten.index_select.default, (value, axis, self._numbers(like, index)), like)

    def pick_output(self, value: Value, axis: int, index: np.ndarray | Value) -> None:
        out = next(n for n in self.gm.graph.nodes if n.op == "output")
        assert isinstance(value, fx.Node)
        if isinstance(index, fx.Node):
            if axis != 1 or meta(value).ndim != 3:
                raise CannotShrink("tokens: an output has tokens merged at run time, on another axis than its second")
            calls = self.gm.graph.call_function
            with self.gm.graph.inserting_before(out):
                column = calls(aten.unsqueeze.default, (index, 2))
                wide = calls(aten.expand.default, (column, [-1, -1, meta(value).shape[2]]))
                made = calls(aten.gather.default, (value, 1, wide))
            out.replace_input_with(value, made)
            return
        assert isinstance(index, np.ndarray)
        tensor = torch.from_numpy(np.ascontiguousarray(index, np.int64)).to(meta(value).device)
        name = self._fresh("whole_positions")
        self._install(name, tensor, False, False)
        with self.gm.graph.inserting_before(out):
            numbers = self.gm.graph.get_attr(name)
            made = self.gm.graph.call_function(aten.index_select.default, (value, axis, numbers))
        numbers.meta["val"] = tensor
        out.replace_input_with(value, made)

    def weigh_keys(self, op: Op, plus: Value) -> None:
        if op.attention is None:
            self.redirect(op, 0, self._call(aten.add.Tensor, (current(op, 0), plus), op))
            return
        known = given_mask(op.node)
        if known is not None and meta(known).dtype is torch.bool:
            raise CannotShrink(f"tokens: {op} has a mask of booleans, to which sizes can not be added")
        mask = plus if known is None else self._call(aten.add.Tensor, (known, plus), op)
        args = list(op.node.args)
        if len(args) > 3:
            args[3] = mask
            op.node.args = tuple(args)
        else:
            op.node.kwargs = {**op.node.kwargs, "attn_mask": mask}

    def pen(self, before: Op, like: Value) -> FxPen:
        return FxPen(self, before, like)

    def rewire(self, value: Value, made: Value, but: Sequence[fx.Node]) -> None:
        assert isinstance(value, fx.Node) and isinstance(made, fx.Node)
        for user in list(value.users):
            if user not in but and user.op != "output":
                user.replace_input_with(value, made)

    def given(self, name: str, like: Value, count: int) -> Value:
        last = [n for n in self.gm.graph.nodes if n.op == "placeholder"][-1]
        with self.gm.graph.inserting_after(last):
            made = self.gm.graph.placeholder(name.replace("/", "_"))
        known = meta(like)
        with known.fake_mode if hasattr(known, "fake_mode") else contextlib.nullcontext():
            made.meta["val"] = torch.zeros(known.shape[0], count, dtype=torch.int64, device=known.device)
        return made

    def without_idle_masks(self) -> FxGraph:
        found = False
        for op in self.ops:
            mask = given_mask(op.node) if op.attention is not None else None
            if isinstance(mask, fx.Node) and is_idle(mask, self.tensor):
                args = [None if a is mask else a for a in op.node.args]
                op.node.args, op.node.kwargs = tuple(args), {k: v for k, v in op.node.kwargs.items() if v is not mask}
                found = True
        if not found:
            return cast("FxGraph", self)
        from .adapter import FxGraph

        self.gm.graph.eliminate_dead_code(has_effect)
        self.gm.recompile()
        return FxGraph(self.gm, self.bound)

    def reopened(self) -> FxGraph:
        """Shapes are found by running the graph on fake tensors of the sizes it was captured with, free ones included."""
        from .adapter import FxGraph

        given = [meta(n) for n in self.gm.graph.nodes if n.op == "placeholder"]
        mode = next((v.fake_mode for v in given if hasattr(v, "fake_mode")), None)
        prop = Reopening(self.gm, mode, self._as_read)
        if mode is not None:
            mode.allow_non_fake_inputs = True
        try:
            with enable_python_dispatcher():  # without it some operators take no sizes that are symbols
                prop.propagate_dont_convert_inputs(*given)
        except RuntimeError as error:
            raise CannotShrink(f"the sizes in the edited graph can not be told ({str(error).splitlines()[0]})") from error
        return FxGraph(self.gm, self.bound)


class Reopening(FakeTensorProp):
    """Numbers that are read from tensors stay what they were when the graph was captured: a fake tensor holds none.
    And so does the shape of what is as it was read, and reads only what is.
    """

    def __init__(self, gm: fx.GraphModule, mode: FakeTensorMode | None, as_read: Mapping[fx.Node, Reading] | None = None) -> None:
        super().__init__(gm, mode)
        self.as_read, self.same = as_read or {}, set[fx.Node]()

    def run_node(self, n: fx.Node) -> Any:
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


def given_mask(node: fx.Node) -> Any:
    """Of `scaled_dot_product_attention`."""
    return node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")


def is_idle(mask: fx.Node, constant: Callable[[fx.Node], torch.Tensor]) -> bool:
    """Does a mask that is made of sizes and constants allow everything? Transformers makes such ones."""

    def value(node: fx.Node) -> Any:
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
