"""The forms a model comes in, and the room of each. A framework is a room and a row.

A room has `opened(model, options, tell)`, a context that gives a `Source` and how images are prepared for it. For those who do
not compile it has `read`, `bench` and `prove`. A room is loaded when it is needed: a file does not load torch.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ...calibration import Preprocess
from ...graphs.onnx import session
from ...graphs.protocols import Graph
from ...system.errors import ToastcError
from ...system.progress import Tell
from ...system.vocabulary import Model
from ..options import Options
from .protocol import Source

SCHEMES = ("timm:", "hf:")


def is_named(model: Model) -> bool:
    """Is it the name of a model that timm or transformers build?"""
    return isinstance(model, str | Path) and str(model).startswith(SCHEMES)


def is_torch(model: Model) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and (isinstance(model, torch.nn.Module) or type(model).__name__ == "ExportedProgram")


@dataclass(frozen=True)
class Room:
    name: str
    fits: Callable[[Model], bool]
    weights: bool = False  # may they be given apart from the model?
    deploys: bool = True  # are its models written for a runtime (`protocol.Deployable`)?


ROOMS = (
    Room("named", is_named, weights=True),
    Room("module", is_torch, deploys=False),
    Room("onnx", lambda model: True),
)


def row_of(model: Model) -> Room:
    return next(room for room in ROOMS if room.fits(model))


def room_of(model: Model) -> ModuleType:
    return import_module(f".{row_of(model).name}", __package__)


def open_source(model: Model, options: Options, tell: Tell) -> AbstractContextManager[tuple[Source, Preprocess | None]]:
    """A model of any form as a source, for the while; what its room can not do is refused first."""
    row = row_of(model)
    if options.weights is not None and not row.weights:
        raise ToastcError("weights: are for a model given by name (timm:..., hf:...)")
    if options.deploy and not row.deploys:
        raise ToastcError("for, dtype and quantize are of ONNX files; a module is for torch.compile")
    opened: AbstractContextManager[tuple[Source, Preprocess | None]] = room_of(model).opened(model, options, tell)
    return opened


def open_graph(model: Model, example_inputs: Any = None, provider: str = "cpu") -> Graph:
    """A model of any form as the compiler sees it. One that is given by name gets random weights."""
    graph: Graph = room_of(model).read(model, example_inputs, provider)[0]
    return graph


@contextlib.contextmanager
def blame_file(*models: Any) -> Iterator[None]:
    """An error that nobody foresaw may be the file's fault. If the runtime can not load it either, that is the error."""
    try:
        yield
    except (ToastcError, MemoryError, OSError):
        raise
    except Exception:
        for path in (m for m in models if isinstance(m, str | Path) and not is_named(m)):
            session.session(Path(path), frugal=True)
        raise
