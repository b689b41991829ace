"""Where compactors stand in a torch module: at the parameters that make a coupling's channels, found through its sites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..graphs import Kind, Op
from ..graphs.fx import FxGraph
from ..graphs.fx.calls import Call
from ..graphs.protocols import bias_of
from ..plans.plan import READERS
from ..plans.sites import Coupling, Member, Site


@dataclass(eq=False)
class Gate:
    """A coupling that is being trained narrower. `alive[groups, width]`; one matrix [groups, width, width] for each producer."""

    name: str
    site: Site
    coupling: Coupling
    matrices: list[nn.Parameter]
    alive: Tensor
    weight: Tensor | None = None  # [groups, width]: what a whole row is worth; None: all the same

    def norms(self) -> Tensor:
        """[groups, width]: how much of each channel is left, over all of its producers."""
        found = torch.stack([matrix.detach().square().sum(2) for matrix in self.matrices]).sum(0).sqrt()
        return found.to("cpu", torch.float64)

    def worth(self) -> Tensor:
        """What goes first: what is left of each channel, by what all of it is worth."""
        return self.norms() if self.weight is None else self.norms() * self.weight


class Compactor(nn.Module):
    """Makes `K W` of a parameter: the rows at `index[groups, width]` of an axis, for every block of rows that has its own K."""

    def __init__(self) -> None:
        super().__init__()
        self.axes: list[int] = []
        self.matrices = nn.ParameterList()

    def add(self, axis: int, index: np.ndarray, matrix: nn.Parameter) -> None:
        self.register_buffer(f"index_{len(self.axes)}", torch.from_numpy(index.copy()).to(matrix.device), persistent=False)
        self.axes.append(axis)
        self.matrices.append(matrix)

    def forward(self, weight: Tensor) -> Tensor:
        for number, (axis, matrix) in enumerate(zip(self.axes, self.matrices, strict=True)):
            index, moved = self.get_buffer(f"index_{number}"), weight.movedim(axis, 0)
            rows = moved[index]
            mixed = (matrix.to(rows.dtype) @ rows.reshape(*index.shape, -1)).view_as(rows)
            weight = moved.index_copy(0, index.flatten(), mixed.flatten(0, 1)).movedim(0, axis)
        return weight


def install(model: nn.Module, graph: FxGraph, sites: Sequence[Site]) -> tuple[list[Gate], dict[str, str]]:
    """Compactors for every coupling that can have some, and why the others have none."""
    gates, left_out = [], {}
    compactors: dict[str, Compactor] = {}
    for site in sites:
        for coupling in site.couplings:
            name = f"{site.name}.{coupling.name}"
            places: list[tuple[Hashable, str, int, np.ndarray]] = []
            reason = coupling.reason
            for op in producers(coupling):
                for owner in (o for o in [(op, 1), bias_of(graph, op)] if o is not None):
                    blocks = Counter[str]()  # weight and bias have theirs in the same order
                    for member in (m for m in coupling.members if m.operand == owner and m.role not in READERS):
                        row = rows_of(graph, owner, member)
                        if row is None:
                            reason = (
                                reason or f"{member.weight} is not, or is no part of, a parameter with its channels on one axis"
                            )
                            continue
                        places.append(((op.name, member.role, blocks[member.role]), *row))
                        blocks[member.role] += 1
            if reason or not places:
                left_out[name] = reason or "no linear makes its channels"
                continue
            made: dict[Hashable, nn.Parameter] = {}
            for block, parameter, axis, index in places:
                device = model.get_parameter(parameter).device
                eye = torch.eye(coupling.width, device=device).repeat(coupling.groups, 1, 1)
                matrix = made.setdefault(block, nn.Parameter(eye))
                compactors.setdefault(parameter, Compactor()).add(axis, index, matrix)
            alive = torch.ones(coupling.groups, coupling.width, dtype=torch.bool)
            gates.append(Gate(name, site, coupling, list(made.values()), alive))
    for parameter, compactor in compactors.items():
        path, _, leaf = parameter.rpartition(".")
        parametrize.register_parametrization(model.get_submodule(path), leaf, compactor, unsafe=True)
    return gates, left_out


def producers(coupling: Coupling) -> list[Op]:
    """The linears that make a coupling's channels."""
    ops = [m.operand[0] for m in coupling.members if m.role not in READERS and m.operand is not None]
    return list(dict.fromkeys(op for op in ops if op.kind is Kind.LINEAR))


def rows_of(graph: FxGraph, owner: tuple[Op, int], member: Member) -> tuple[str, int, np.ndarray] | None:
    """The parameter that an operand is, or is a part of, the axis of it that the channels stand on, and where they stand."""
    found = origin(graph, owner[0].inputs[owner[1]])
    if found is None or len(member.axes) != 1:
        return None
    (name, shape, numbers), (along,), index = found, member.axes, member.index
    lines = np.moveaxis(numbers, along, 0).reshape(numbers.shape[along], -1)[index.ravel()]
    for axis, place in enumerate(np.unravel_index(lines, shape)):
        whole = lines.shape[1] * shape[axis] == int(np.prod(shape))
        if whole and (place == place[:, :1]).all():
            return name, axis, place[:, 0].reshape(index.shape)
    return None


def origin(graph: FxGraph, value: Any) -> tuple[str, tuple[int, ...], np.ndarray] | None:
    """The parameter that a constant is made of by moving numbers about, its shape, and where each number stands in it."""
    names: set[str] = set()

    def numbered(start: int) -> Callable[[Any], Tensor]:
        def run(node: Any) -> Tensor:
            if node.op != "get_attr":
                made: Tensor = Call.of(node).run(run)
                return made
            names.add(str(node.target))
            shape = graph.tensor(node).shape
            return torch.arange(shape.numel(), dtype=torch.float64).add(start).view(shape)

        return run

    here, further = numbered(0)(value), numbered(1)(value)
    parameters = dict(graph.gm.named_parameters(remove_duplicate=False))
    if len(names) != 1 or not names <= parameters.keys() or not torch.equal(further - here, torch.ones_like(here)):
        return None
    (name,) = names
    return name, tuple(parameters[name].shape), here.long().numpy()
