"""A graph of Dynamo's as a model to compress."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ....graphs.fx import FxGraph
from ....graphs.fx.capture import shared_copy
from ....passes.deploy.fuse import fuse_attention
from ....passes.prove import Verification
from ....passes.prove.modules import verify_modules
from ....passes.state import State
from ....plans.plan import Plan
from ....system.progress import Tell
from ...request import Request
from ..module import GraphSource, MadeModule


@dataclass
class DynamoSource(GraphSource):
    """A graph whose weights are its own by now. The one that is cut shares them with the dense one."""

    fuse: bool = True

    def open(self) -> FxGraph:
        graph = FxGraph(shared_copy(self.captured))
        return fuse_attention(graph)[0] if self.fuse else graph

    @contextlib.contextmanager
    def written(self, state: State, request: Request, seconds: dict[str, float], tell: Tell) -> Iterator[MadeModule]:
        yield MadeGraph(self, state.graph)

    @property
    def trains(self) -> str:
        """What draws at random, or learns, where the graph was captured in training mode."""
        for node in self.captured.graph.nodes:
            name = getattr(node.target, "__name__", str(node.target))
            words = {**dict(enumerate(node.args)), **node.kwargs}
            if name == "dropout" and words.get("training", words.get(2)) and words.get("p", words.get(1)):
                return str(name)
            if name == "batch_norm" and words.get("training", words.get(5)):
                return str(name)
            if name == "scaled_dot_product_attention" and words.get("dropout_p", words.get(4)):
                return "dropout"
        return ""


@dataclass
class MadeGraph(MadeModule):
    """Sizes that hang on numbers are those that Dynamo left in it: on fake tensors they could not be read again."""

    def graph(self) -> FxGraph:
        return self.edited.reopened()

    def prove(self, plan: Plan, seed: int) -> Verification:
        """On the example inputs: what else a graph takes is Dynamo's to know."""
        dense = FxGraph(shared_copy(self.source.captured))
        with torch.no_grad():
            return verify_modules(dense, self.graph(), plan, self.source.args, seed, again=False)
