"""A torch module as a graph of torch.export, with parameters of its own; and a graph looked at afresh after it was edited."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ...system.errors import ToastcError
from ...system.vocabulary import Inputs, Model, Operand
from .editor import drop_unused
from .graph import FxGraph
from .names import owner_of
from .reopen import Reopening
from .unpack import is_packed, unpacked, without_empty_parts


def example_inputs_of(model: torch.nn.Module) -> tuple[Operand, ...]:
    """Two images of the size a model of timm, transformers or torchvision says it takes."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    size = config.get("input_size") if isinstance(config, dict) else None
    embed = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if isinstance(embed, tuple | list) and size is not None:
        size = (size[0], *embed)
    elif size is None:
        size = image_size_of(getattr(model, "config", None)) or image_size_of(model)
    if size is None:
        raise ToastcError(
            f"{type(model).__name__}: can not guess its inputs; give example_inputs=(tensor, ...), with a batch of 2"
        )
    channels = getattr(getattr(getattr(model, "patch_embed", None), "proj", None), "in_channels", size[0])
    like = next(model.parameters())
    return (torch.randn(2, channels, *size[1:], dtype=like.dtype, device=like.device),)


def image_size_of(config: Any) -> tuple[int, int, int] | None:
    """As configurations of transformers and models of torchvision say it; what takes any size was mostly made for 224."""
    size = getattr(config, "image_size", None)
    if size is None and getattr(config, "num_channels", None) is not None:
        size = 224
    if not isinstance(size, int | list | tuple):
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(config, "num_channels", 3), height, width


def capture(model: Model, example_inputs: Inputs | None) -> tuple[fx.GraphModule, Inputs]:
    """A graph with parameters of its own; the batch stays free where the model allows it."""
    if type(model).__name__ == "ExportedProgram":
        program, args = model, model.example_inputs[0] if example_inputs is None else example_inputs
    else:
        args = example_inputs if example_inputs is not None else example_inputs_of(model)
        program = exported(model, tuple(args))
    return without_dead_parts(copy.deepcopy(program.module(check_guards=False))), tuple(args)


def exported(model: Model, args: tuple[Operand, ...]) -> torch.export.ExportedProgram:
    if model.training:
        raise ToastcError(f"{type(model).__name__}: is in training mode; call model.eval() first")
    free = tuple({0: torch.export.Dim.AUTO} if isinstance(a, torch.Tensor) and a.ndim and a.shape[0] > 1 else None for a in args)
    with torch.no_grad():
        return torch.export.export(model, args, dynamic_shapes=free, strict=False)


def without_dead_parts(gm: fx.GraphModule) -> fx.GraphModule:
    """Without what no output needs, so that it is not counted before the cut and missing after."""
    if is_packed(gm):
        gm = unpacked(gm)
    without_empty_parts(gm.graph)
    gm.graph.eliminate_dead_code()
    drop_unused(gm)
    gm.recompile()
    return gm


def frozen(gm: fx.GraphModule, inputs: Inputs) -> tuple[fx.GraphModule, list[int]]:
    """A graph of Dynamo's with the weights among its inputs as its own, taken apart; and which of the inputs are left."""
    gm, held = unpacked(gm), dict[int, torch.Tensor]()
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    left = []
    for number, (node, value) in enumerate(zip(placeholders, inputs, strict=True)):
        if not is_weight(value):
            left.append(number)
            if isinstance(value, torch.Tensor) and not value.dim():
                node.meta["given"] = value  # a number in the code, which no data tells
            continue
        plain = value.detach()
        tensor = torch.nn.Parameter(plain, requires_grad=False) if isinstance(value, torch.nn.Parameter) else plain
        name, tensor = frozen_name(gm, node), held.setdefault(id(value), tensor)
        owner, _, leaf = name.rpartition(".")
        module = gm.get_submodule(owner)
        if isinstance(tensor, torch.nn.Parameter):
            module.register_parameter(leaf, tensor)
        else:
            module.register_buffer(leaf, tensor)
        with gm.graph.inserting_before(node):
            own = gm.graph.get_attr(name)
        own.meta = dict(node.meta)
        node.replace_all_uses_with(own)
        gm.graph.erase_node(node)
    gm.recompile()
    return gm, left


def frozen_name(gm: fx.GraphModule, node: fx.Node) -> str:
    """`blocks.0.attn.weight` of `l_self_modules_blocks_modules_0_modules_attn_parameters_weight_`."""
    owner, leaf = owner_of(node), node.name.rpartition("_parameters_")[2].strip("_")
    if not owner or not leaf.isidentifier():
        return f"frozen_{node.name}"
    path = owner.split(".")
    for depth in range(1, len(path) + 1):
        if not hasattr(gm.get_submodule(".".join(path[: depth - 1])), path[depth - 1]):
            gm.add_submodule(".".join(path[:depth]), torch.nn.Module())
    free = not hasattr(gm.get_submodule(owner), leaf)
    return f"{owner}.{leaf}" if free else f"frozen_{node.name}"


def is_weight(value: Operand) -> bool:
    """Parameters, and buffers that Dynamo marked as static."""
    return isinstance(value, torch.nn.Parameter) or getattr(value, "_dynamo_static_input_type", None) is not None


def shared_copy(gm: fx.GraphModule) -> fx.GraphModule:
    """A graph to edit, which shares weights and fake values with this one."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    made = fx.GraphModule(gm, graph)
    made.graph.set_codegen(gm.graph._codegen)
    made.recompile()
    return made


def reread(gm: fx.GraphModule, args: Inputs) -> FxGraph:
    """Look at an edited graph afresh: shapes are found by running it on fake tensors."""
    for node in gm.graph.nodes:
        node.meta.pop("unbacked_bindings", None)
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)  # sizes may hang on numbers
    with enable_python_dispatcher():
        Reopening(gm, mode).propagate(*args)
    return FxGraph(gm)
