"""toastc as a pass of Olive, Microsoft's chain of model optimisations.

    python -m toastc.olive > olive_package.json        Olive's own passes, and this one
    olive run --config c.json --package-config olive_package.json

with `"passes": {"prune": {"type": "ToastcPrune", "target": "macs=0.6", "data": "photos/"}}` in c.json; or, in Python,
`olive.run(config, package_config=toastc.olive.package())`.
"""

from __future__ import annotations

import json
from pathlib import Path

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from .api import prune
from .compiler.options import OLIVE, words
from .system.vocabulary import Json


class ToastcPrune(Pass):  # type: ignore[misc]
    """Prune a Vision Transformer: smaller dense weights, proven equal to the masked model."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            name: PassConfigParam(type_=word.type | None, default_value=None, description=word.help)
            for name, _, word in words(OLIVE)
        }

    def _run_for_config(self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str) -> ONNXModelHandler:
        target = resolve_onnx_path(output_model_path, Path(model.model_path).name)
        given = {name: value for name, _, _ in words(OLIVE) if (value := getattr(config, name)) is not None}
        prune(model.model_path, given.pop("ratios", None), output=target, **given)
        return ONNXModelHandler(model_path=target)


def package() -> Json:
    """Olive's package configuration with this pass in it."""
    config = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text())
    own: Json = {key: ["*"] for key in ("supported_providers", "supported_accelerators", "supported_precisions")}
    config["passes"]["ToastcPrune"] = {"module_path": f"toastc.olive.{ToastcPrune.__name__}", **own}
    return config  # type: ignore[no-any-return]


if __name__ == "__main__":
    print(json.dumps(package(), indent=1))
