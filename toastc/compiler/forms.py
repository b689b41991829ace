"""The forms a model is given in, and given back in."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..calibration import Preprocess
from ..system.errors import ToastcError
from ..system.progress import Tell

SCHEMES = ("timm:", "hf:")


def as_ir(model: Any) -> tuple[str, Any]:
    """An in-memory model as a fresh ir.Model, and what it was."""
    import onnx
    import onnx_ir as ir

    surgeon = sys.modules.get("onnx_graphsurgeon")
    if surgeon is not None and isinstance(model, surgeon.Graph):
        return "gs", ir.from_proto(surgeon.export_onnx(model))
    if isinstance(model, onnx.ModelProto):
        return "proto", ir.from_proto(model)
    if isinstance(model, ir.Model):
        return "ir", model.clone()
    raise ToastcError(f"can not prune a {type(model).__name__}; give a path, an ONNX model, a gs.Graph or a torch module")


def from_ir(kind: str, model: Any) -> Any:
    import onnx_ir as ir

    if kind == "ir":
        return model
    proto = ir.to_proto(model)
    return sys.modules["onnx_graphsurgeon"].import_onnx(proto) if kind == "gs" else proto


def is_named(model: Any) -> bool:
    """Is it the name of a model that timm or transformers build?"""
    return isinstance(model, str | Path) and str(model).startswith(SCHEMES)


def is_torch(model: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and (isinstance(model, torch.nn.Module) or type(model).__name__ == "ExportedProgram")


@contextlib.contextmanager
def at_hand(model: Any, weights: str | None, tell: Tell) -> Iterator[tuple[Any, Preprocess | None]]:
    """The model, exported to a file if it is given by name, and how its images are prepared, as far as it says so itself."""
    if is_named(model):
        from .sources.named import as_file

        tell("export")
        with as_file(str(model), weights) as found:
            yield found
        return
    if weights is not None:
        raise ToastcError("weights: are for a model given by name (timm:..., hf:...)")
    yield model, Preprocess.of(getattr(model, "pretrained_cfg", None)) if is_torch(model) else None


def open_graph(model: Any, example_inputs: Sequence[Any] | None = None, provider: str = "cpu") -> tuple[Any, str]:
    """A model of any kind as the compiler sees it, and what to call it. One that is given by name gets random weights."""
    if is_named(model):
        from .sources.named import built

        return open_graph(built(str(model), "random").module, example_inputs)[0], str(model)
    if is_torch(model):
        from .sources.module import open_module

        return open_module(model, example_inputs), type(model).__name__
    from ..graphs.onnx import OnnxGraph, load_model, prepare

    loaded = load_model(Path(model)) if isinstance(model, str | Path) else prepare(as_ir(model)[1], "model")
    return OnnxGraph(loaded, provider), str(model) if isinstance(model, str | Path) else "model"


@contextlib.contextmanager
def blamed(*models: Any) -> Iterator[None]:
    """What fails and was not foreseen may be the fault of a file that no runtime takes either: then that is said."""
    try:
        yield
    except (ToastcError, MemoryError, OSError):
        raise
    except Exception:
        for path in (m for m in models if isinstance(m, str | Path) and not is_named(m)):
            from ..graphs.onnx.session import session

            session(Path(path), frugal=True)
        raise
