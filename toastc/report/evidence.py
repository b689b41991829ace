"""What a report shows besides its results: why the widths are what they are, a photo, and what it all ran on."""

from __future__ import annotations

import base64
import io
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..graphs.protocols import Reader
from ..passes.deploy.attentions import attentions
from ..passes.state import State
from ..plans.plan import Plan
from ..plans.sites import Site
from ..system.errors import ToastcError
from ..system.vocabulary import Read
from ..timing.kernels import table
from .data import Curve

POINTS = 33  # of a curve
PIXELS = 336
LONGEST = 400  # characters of an argument that is spelt out
PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "onnxscript", "torch", "timm", "transformers")


def curves(state: State) -> tuple[Curve, ...]:
    """Of every coupling that was analysed or scored; its loss as far as it reaches the outputs, where that was measured."""
    return tuple(each for site in state.sites for c in site.couplings for each in of_coupling(state, f"{site.name}.{c.name}"))


def of_coupling(state: State, name: str) -> Iterator[Curve]:
    choice = state.plan.choices.get(name)
    coupling = state.coupling(name)
    kept = coupling.width if choice is None else choice.width
    loss = state.losses.get(name)
    if loss is not None:
        yield sampled(name, "loss", loss.curve * state.gains.get(name, 1.0), kept)
        if coupling.rotatable:
            yield sampled(name, "spectrum", np.sqrt(np.maximum(-np.diff(loss.curves, axis=1), 0).mean(axis=0)), kept)
    if name in state.scores:
        yield sampled(name, "score", -np.sort(-state.scores[name], axis=1).mean(axis=0), kept)


def sampled(name: str, kind: str, values: np.ndarray, kept: int) -> Curve:
    """At most so many points, the chosen width among them; a loss has one more value than there are channels."""
    last = len(values) - 1
    at = sorted({*np.linspace(0, last, POINTS).round().astype(int).tolist(), min(kept, last)})
    return Curve(name, kind, tuple(at), tuple(float(f"{values[i]:.5g}") for i in at), kept)


def kernel_rows(graph: Reader, sites: Sequence[Site], plan: Plan) -> tuple[dict[str, object], ...]:
    """Which kernels the attentions get, before and after."""
    return tuple(table(attentions(graph, sites), attentions(graph, sites, plan), graph.totals()[0]))


def photo(data: Any) -> str | None:
    """The first of the calibration images, small, as a data URI; what was normalised away is stretched back."""
    from PIL import Image

    try:
        batch: Mapping[str, np.ndarray] = {} if data is None else next(iter(data), {})
    except ToastcError:  # a stream of inputs that has run out by now
        return None
    images = next((array for array in batch.values() if array.ndim == 4 and array.shape[1] == 3), None)
    if images is None:
        return None
    first = images[0].astype(np.float64)
    low, high = first.min(), first.max()
    pixels = ((first - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((PIXELS, PIXELS))
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def as_called(function: Callable[..., Any], given: Read) -> str:
    """A call as Python text: arguments that were left out are left out; models and data are named by what they are."""

    def in_python(value: Any) -> str:
        if isinstance(value, Path):
            return repr(str(value))
        plain = value is None or isinstance(value, str | int | float | bool | dict | list | tuple) or is_dataclass(value)
        return repr(value) if plain and len(repr(value)) < LONGEST else f"<{type(value).__name__}>"

    parameters = signature(function).parameters.values()
    told = [(p, given[p.name]) for p in parameters if p.name != "tell" and in_python(given[p.name]) != in_python(p.default)]
    words = [in_python(v) if p.kind is p.POSITIONAL_OR_KEYWORD else f"{p.name}={in_python(v)}" for p, v in told]
    return f"toastc.{function.__name__}({', '.join(words)})"


def surroundings() -> dict[str, object]:
    """Versions and machine: what it takes to repeat a run."""
    versions = {"toastc": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "machine": {"system": platform.platform(), "cores": os.cpu_count()}}
