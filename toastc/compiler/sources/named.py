"""Models by name: `timm:deit_small_patch16_224`, `timm:vit_tiny_patch16_224?img_size=96`, `hf:ORG/NAME`, `hf:FOLDER`.

They are built by timm and transformers, with the weights those libraries find, and exported to ONNX. Weights are read without
pickle, and no code is fetched.
"""

from __future__ import annotations

import ast
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import nn

from ...calibration import Preprocess
from ...graphs.fx import FxGraph
from ...graphs.fx.capture import example_inputs_of
from ...system.errors import ToastcError
from ...system.files import scratch
from ...system.progress import Tell, quiet_libraries
from ...system.vocabulary import Inputs, Json, Model
from ..options import Options
from . import module
from . import onnx as files

RANDOM = "random"
OPSET = 20
INLINE_LIMIT = 1 << 30  # bytes of weights; more of them get a file of their own


@dataclass(frozen=True)
class Named:
    """A model, what to export it with, and how its images are prepared."""

    module: nn.Module
    input_name: str
    preprocess: Preprocess | None


@contextlib.contextmanager
def opened(model: Model, options: Options, tell: Tell) -> Iterator[tuple[files.OnnxSource, Preprocess | None]]:
    """The model as the file that it is exported to, under the name that it was given by."""
    tell("export")
    with contextlib.ExitStack() as kept:
        path, preprocess = kept.enter_context(as_file(str(model), options.weights))
        source, _ = kept.enter_context(files.opened(path, options, tell))
        source.name = str(model)
        yield source, preprocess


def read(model: Model, example_inputs: Inputs | None = None, provider: str = "cpu") -> tuple[FxGraph, str]:
    """The graph as the compiler sees it, with random weights."""
    return module.read(built(str(model), RANDOM).module, example_inputs)[0], str(model)


@contextlib.contextmanager
def as_file(name: str, weights: str | None = None) -> Iterator[tuple[Path, Preprocess | None]]:
    """The named model as an ONNX file, for as long as it takes."""
    source = built(name, weights)
    with scratch() as folder:
        path = folder / "dense.onnx"
        try:
            export(source, path)
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
            raise ToastcError(f"{name}: can not be exported ({' '.join(str(error).split())[:200]})") from error
        yield path, source.preprocess


def export(source: Named, path: Path) -> None:
    """The batch stays free."""
    inputs = example_inputs_of(source.module)
    size = sum(p.numel() * p.element_size() for p in source.module.parameters())
    with quiet(), torch.no_grad():
        torch.onnx.export(
            source.module, inputs, path, dynamo=True, opset_version=OPSET, verbose=False, external_data=size > INLINE_LIMIT,
            input_names=[source.input_name], dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter talks about its own insides."""
    with quiet_libraries(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def built(name: str, weights: str | None = None) -> Named:
    """`weights`: a file, or "random"; else those that belong to the name."""
    scheme, _, what = name.partition(":")
    what, _, query = what.partition("?")
    options = {key: literal(value) for key, value in parse_qsl(query, keep_blank_values=True)}
    if not what:
        raise ToastcError(f"{name}: give a model's name behind {scheme}:")
    try:
        source = (of_timm if scheme == "timm" else of_transformers)(what, weights, options)
    except ImportError as error:
        raise ToastcError(f"{name}: needs a package that is not here ({error})") from None
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        hint = "" if weights else "; give --weights FILE.safetensors, or --weights random"
        raise ToastcError(f"{name}: can not be had ({' '.join(str(error).split())[:200]}){hint}") from None
    source.module.eval()
    return source


def literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def of_timm(what: str, weights: str | None, options: Json) -> Named:
    import timm

    module = timm.create_model(what, pretrained=weights is None, **options)
    if weights not in (None, RANDOM):
        timm.models.load_checkpoint(module, str(weights), use_ema=False, weights_only=True)
    return Named(module, "image", Preprocess.of(module.pretrained_cfg))


def of_transformers(what: str, weights: str | None, options: Json) -> Named:
    import transformers

    config = transformers.AutoConfig.from_pretrained(what, trust_remote_code=False, **options)
    kind = getattr(transformers, (config.architectures or ["AutoModel"])[0])
    if weights is None:
        module = kind.from_pretrained(what, config=config, use_safetensors=True, trust_remote_code=False)
    else:
        module = kind._from_config(config) if hasattr(kind, "_from_config") else kind.from_config(config)
        if weights != RANDOM:
            from safetensors.torch import load_file

            module.load_state_dict(load_file(weights))
    if module.main_input_name != "pixel_values":
        raise ToastcError(f"hf:{what}: takes {module.main_input_name}; models of images alone are exported, give an ONNX file")
    config.return_dict = True
    return Named(module, "pixel_values", preprocessing(transformers, what))


def preprocessing(transformers: Any, what: str) -> Preprocess | None:
    try:
        made = transformers.AutoImageProcessor.from_pretrained(what, trust_remote_code=False).to_dict()
    except (OSError, ValueError):  # a model without a processor of its own
        return None
    return Preprocess.of(
        {"mean": made["image_mean"], "std": made["image_std"], "crop_pct": 1.0} if made.get("image_mean") else None
    )
