"""Pruned modules as folders, the way Hugging Face keeps models: config.json and model.safetensors, no pickle, no code.

    toastc.save_pretrained(small, "folder", dense)
    small = toastc.from_pretrained("folder")

The configuration says how timm or transformers build the dense architecture; the weights' file carries the plan that cuts it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..graphs.fx.capture import example_inputs_of
from ..system.errors import ToastcError
from ..system.files import write_beside
from ..system.vocabulary import Inputs, Json, Read
from .finetune import load, save

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1


def save_pretrained(
    small: nn.Module, folder: str | Path, dense: nn.Module, *, example_inputs: Inputs | None = None, **options: Any
) -> None:
    """Write what `toastc.prune` or `finetune.trainable` made of `dense`, a model of timm's or of transformers'.

    `options` are those timm built the dense model with, as far as they can not be read off it (`depth=6`, ...).
    """
    recipe = described(dense, options)
    shapes = {name: tensor.shape for name, tensor in dense.state_dict().items()}
    own = {name: tensor.shape for name, tensor in skeleton(recipe).state_dict().items()}
    if own != shapes:
        odd = next(name for name in {**shapes, **own} if shapes.get(name) != own.get(name))
        raise ToastcError(
            f"{type(dense).__name__}: is not what {recipe['library']} builds by that name ({odd}); give its options"
        )
    inputs = example_inputs_of(dense) if example_inputs is None else example_inputs
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save(small, target / WEIGHTS)
    config = {"format": FORMAT, "toastc": __version__, "build": recipe, "inputs": [list(x.shape) for x in inputs]}
    with write_beside(target / CONFIG) as file:
        file.write_text(json.dumps(config, indent=1) + "\n")


def from_pretrained(folder: str | Path) -> nn.Module:
    """The pruned module, in eval mode."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text())
        if config["format"] != FORMAT:
            raise ToastcError(f"{path}: was written by a toastc ({config.get('toastc')}) whose files this one does not read")
        dense = skeleton(config["build"])
        inputs = [torch.zeros(shape) for shape in config["inputs"]]
    except FileNotFoundError:
        raise ToastcError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise ToastcError(f"{path}: not a configuration of toastc.save_pretrained ({str(error)[:200]})") from None
    return load(dense.eval(), Path(folder) / WEIGHTS, example_inputs=inputs)


def described(dense: nn.Module, options: Read) -> Json:
    """How it is built again: timm's name and options, or transformers' class and configuration."""
    known = getattr(dense, "pretrained_cfg", None)
    if isinstance(known, Mapping) and "architecture" in known:
        read = {"num_classes": getattr(dense, "num_classes", None)}
        size = getattr(getattr(dense, "patch_embed", None), "img_size", None)
        if isinstance(size, tuple | list):
            read["img_size"] = list(size)
        given = {k: v for k, v in read.items() if v is not None} | dict(options)
        return {"library": "timm", "name": known["architecture"], "options": given}
    config: Any = getattr(dense, "config", None)
    if hasattr(config, "to_dict"):
        return {"library": "transformers", "name": type(dense).__name__, "options": config.to_dict()}
    raise ToastcError(
        f"{type(dense).__name__}: is neither timm's nor transformers'; toastc.finetune.save and load take any module"
    )


def skeleton(recipe: Read) -> nn.Module:
    """The dense architecture, with weights that do not matter. Only classes of the two libraries are built."""
    name, options = str(recipe["name"]), dict(recipe["options"])
    if recipe["library"] == "timm":
        import timm

        return timm.create_model(name, pretrained=False, **options)
    import transformers

    kind: Any = getattr(transformers, name, None)
    if recipe["library"] != "transformers" or not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ValueError(f"transformers has no model called {name}")
    config = transformers.AutoConfig.for_model(options.pop("model_type"), **options)
    return kind(config)
