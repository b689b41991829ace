"""What the compiler asks of a model, whatever form it comes in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ...graphs.protocols import Graph
from ...passes.prove import Verification
from ...passes.state import State
from ...plans.plan import Plan
from ...plans.sites import Site
from ...report.data import Size
from ...system.progress import Tell
from ..request import Request


class Deployed(Protocol):
    """A proven model, as it became for its runtime."""

    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]: ...


class Made(Protocol):
    """The smaller model."""

    @property
    def model(self) -> Any: ...  # of the kind that was given; known once it is written
    @property
    def notes(self) -> tuple[str, ...]: ...  # what there is to say of how it is written

    def prove(self, plan: Plan, seed: int) -> Verification: ...
    def graph(self) -> Graph: ...  # looked at afresh
    def size(self, macs: int) -> Size: ...


@runtime_checkable
class Deployable(Protocol):
    """A smaller model that can be written for a runtime: of the rooms whose row says so."""

    def deploy(self, request: Request, data: Any, tell: Tell) -> Deployed: ...


class Source(Protocol):
    name: str
    opening: str  # what it takes to have the graph: read, export
    consequence: str  # what became of the output, where the proof fails
    leaves_out: bool  # may tokens that nobody reads be left out without being asked?

    def files(self) -> list[Path]: ...  # that the dense model is in, if it is in any
    def open(self) -> Graph: ...  # the dense graph, to be changed: another one each time
    def size(self, graph: Graph) -> Size: ...  # of the dense model
    def single_nodes(self, sites: Sequence[Site]) -> Sequence[Site]: ...  # attentions of which a kernel can be told
    def unchanged(self) -> Any: ...  # the model as it was given
    def unfinished(self, state: State) -> Any: ...  # the model of a dry run
    def written(
        self, state: State, request: Request, seconds: dict[str, float], tell: Tell
    ) -> AbstractContextManager[Made]: ...  # the shrunken graph, written; in its place once all went well
