"""Training a pruned torch model again, in a training loop of your own.

small = finetune.trainable(dense, ratios, drop_path=0.1)         # really smaller, in training mode
loss = finetune.Distillation(dense)(images, small(images), loss)  # with the dense model as the teacher
finetune.save(small, path)                                       # one safetensors file: weights and plan
small = finetune.load(dense, path)
finetune.Masks(dense, plan).apply()                              # instead: the dense module, masked
"""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..api import prune
from ..graphs import Kind
from ..graphs.fx import FxGraph
from ..graphs.fx.capture import example_inputs_of, reread
from ..graphs.fx.classify import meta, op_name
from ..graphs.protocols import bias_of
from ..plans.plan import Plan, from_dict
from ..system.errors import ToastcError
from ..system.files import write_beside
from ..system.vocabulary import Inputs
from .masks import Masks

__all__ = ["Distillation", "DropPath", "Masks", "load", "save", "trainable"]
PLAN = "toastc.plan"  # its place in a file's metadata, and in a graph's
FORM, GRAPH, MODULE = "form", "graph", "module"  # beside the plan
MACS = "toastc.macs"  # of one sample, dense and pruned: in a module's
LINEARS = ("linear", "addmm", "matmul", "mm", "bmm")


def trainable(
    model: nn.Module, ratios: Any = None, *, example_inputs: Inputs | None = None, drop_path: float = 0.0, **options: Any
) -> fx.GraphModule:
    """The smaller module, to train: pruned as `toastc.prune(model, ratios, **options)` prunes (`target=`, `plan=`, `data=`, ...).

    All its parameters require gradients, the batch is free, `train()`, `eval()`, `deepcopy` and `state_dict()` do what they
    do anywhere. With `drop_path` each residual branch is left out for a random share of the samples, linearly growing up to this.
    Modules that train differently (dropout, batch norms) stay as they were in `model.eval()`.
    """
    if not 0 <= drop_path < 1:
        raise ToastcError(f"drop_path={drop_path}: is a share, from 0 to less than 1")
    args = tuple(example_inputs) if example_inputs is not None else example_inputs_of(model)
    result = prune(model, ratios, example_inputs=args, as_graph=True, **options)
    gm: fx.GraphModule = result.model
    for node in gm.graph.nodes:  # they would forbid mixed precision
        if "_assert_tensor_metadata" in str(node.target):
            gm.graph.erase_node(node)
    graph = reread(gm, args)
    learn_computed(graph, {name for name, _ in model.named_buffers()})
    drop_branches(gm, drop_path)
    gm.graph.lint()
    gm.recompile()
    gm.meta[PLAN] = result.plan  # unlike an attribute, this is copied with the module
    gm.meta[MACS] = (result.report.before.macs, result.report.after.macs)
    return gm.requires_grad_(True).train()


def learn_computed(graph: FxGraph, known: set[str]) -> None:
    """A weight that the dense model computed (from a packed one, say) came out of the cut as a buffer: let it learn."""
    for op in graph.ops:
        if op.kind is Kind.LINEAR:
            for owner, slot in ((op, 1), bias_of(graph, op) or (op, 1)):
                node: Any = owner.inputs[slot]
                module, leaf = owner_of(graph.gm, str(node.target)) if node.op == "get_attr" else (graph.gm, "")
                if leaf in module._buffers and node.target not in known:
                    weight = module.get_buffer(leaf)
                    del module._buffers[leaf]
                    module.register_parameter(leaf, nn.Parameter(weight))


def owner_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


# ---- stochastic depth ------------------------------------------------------------------------------------


class DropPath(nn.Module):
    """In training, leaves its input out for a share of the samples (axis 0), and makes up for them in the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"{self.rate:.3f}"


def drop_branches(gm: fx.GraphModule, most: float) -> None:
    """branch -> add    becomes    branch -> DropPath -> add, at every residual sum."""
    if not most:
        return
    sums = residual_sums(gm.graph)
    if not sums:
        raise ToastcError("drop_path: the model has no residual branch; leave it at 0")
    for number, (add, branch) in enumerate(sums):
        gm.add_submodule(f"drop_path_{number}", DropPath(most * number / max(1, len(sums) - 1)))
        with gm.graph.inserting_before(add):
            drop = gm.graph.call_module(f"drop_path_{number}", (branch,))
        add.replace_input_with(branch, drop)


def residual_sums(graph: fx.Graph) -> list[tuple[fx.Node, fx.Node]]:
    """x + f(x), where f has a linear and no such sum of its own; and f(x)."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    found: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "call_function" or op_name(node) not in ("add", "iadd") or len(node.all_input_nodes) != 2:
            continue
        for x, branch in permutations(node.all_input_nodes):
            way, left = set(), [branch]
            while left:
                at = left.pop()
                if place[at] >= place[x] and at not in way:
                    way.add(at)
                    left += [] if at is x else at.all_input_nodes
            straight = any(n.op == "call_function" and op_name(n) in LINEARS for n in way)
            if x in way and straight and not (way - {x}) & found.keys() and meta(x).shape == meta(branch).shape:
                found[node] = branch
    return list(found.items())


# ---- files -----------------------------------------------------------------------------------------------


def save(module: nn.Module, path: str | Path) -> None:
    """Write weights and plan of a pruned module to one safetensors file."""
    from safetensors.torch import save_file

    plan = getattr(module, "meta", {}).get(PLAN, getattr(module, "toastc_plan", None))
    if plan is None:
        raise ToastcError(f"{type(module).__name__}: has no plan; save takes what trainable, load or toastc.prune made")
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    with write_beside(Path(path)) as file:
        about = {FORM: GRAPH if isinstance(module, fx.GraphModule) else MODULE}
        save_file(tensors, file, {PLAN: json.dumps((plan.to_dict() if isinstance(plan, Plan) else plan) | about)})


def load(model: nn.Module, path: str | Path, *, example_inputs: Inputs | None = None, drop_path: float = 0.0) -> nn.Module:
    """The module that was saved, in eval mode, a graph if that was one. `model` is the dense architecture; its own weights do not
    matter.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if PLAN not in about:
            raise ToastcError(f"{path}: has no plan; it was not written by toastc.finetune.save")
        said = json.loads(about[PLAN])
        plan = from_dict(said)
    except FileNotFoundError:
        raise ToastcError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ToastcError(f"{path}: not a file of toastc.finetune.save ({error})") from None
    if said.get(FORM, GRAPH) == GRAPH:
        small: nn.Module = trainable(model, plan=plan, verify=False, example_inputs=example_inputs, drop_path=drop_path)
    elif drop_path:
        raise ToastcError(f"{path}: drop_path is for what trainable makes; this module has its own")
    else:
        small = prune(model, plan=plan, verify=False, example_inputs=example_inputs).model
    try:
        small.load_state_dict(tensors)
    except RuntimeError as error:
        raise ToastcError(f"{path}: its weights do not fit this {type(model).__name__} ({error})") from None
    return small.eval()


# ---- a loss ----------------------------------------------------------------------------------------------


class Distillation(nn.Module):
    """(1 - weight) loss + weight T^2 KL(teacher || student), of logits [..., classes] at temperature T.

    `teacher` is put into eval mode and stays there; it gets no gradients.
    """

    def __init__(self, teacher: nn.Module, weight: float = 0.5, temperature: float = 1.0) -> None:
        super().__init__()
        self.teacher, self.weight, self.temperature = teacher.eval(), weight, temperature

    def train(self, mode: bool = True) -> Distillation:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, inputs: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = (self.teacher(inputs).float() / self.temperature).log_softmax(-1)
        got = (logits.float() / self.temperature).log_softmax(-1)
        apart = nn.functional.kl_div(got.flatten(0, -2), wanted.flatten(0, -2), reduction="batchmean", log_target=True)
        return (1 - self.weight) * loss + self.weight * self.temperature**2 * apart
