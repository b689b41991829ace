"""Constants that a module computes from its parameters, asked for by several threads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from toastc.graphs.fx import FxGraph
from toastc.graphs.fx.calls import Call
from toastc.graphs.fx.capture import capture


class Joined(nn.Module):
    """One product with two weights, joined in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, torch.cat([self.first.weight, self.second.weight]))


class Overtaken(dict[Any, Any]):
    """As soon as one thread has seen that a constant is still to be computed, another has computed it."""

    def __getitem__(self, name: Any) -> Any:
        found = super().__getitem__(name)
        if isinstance(found, Call):
            self[name] = found.run(self.__getitem__)
        return found


def test_two_threads_that_need_the_same_constant() -> None:
    model = Joined().eval()
    graph = FxGraph(capture(model, (torch.zeros(2, 8),))[0])
    late = next(name for name, how in graph.constants.items() if isinstance(how, Call))
    graph.constants = Overtaken(graph.constants)
    assert graph.tensor(late).equal(torch.cat([model.first.weight, model.second.weight]))
