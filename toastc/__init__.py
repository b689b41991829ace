"""toastc: a compiler that makes Vision Transformers smaller and faster without retraining.

toastc.prune(model, ratios={"attention": 0.5, "ffn": 0.5}).model
torch.compile(model, backend=toastc.backend)
"""

from __future__ import annotations

import sys as _sys
from importlib import import_module as _import_module
from importlib.util import spec_from_file_location as _spec
from pathlib import Path as _Path
from typing import Any as _Any

__version__ = "0.1.0"
_HOMES = {  # every public name, and the module it is taken from when somebody asks for it
    "Plan": "plans.plan", "Result": "compiler.result", "ToastcError": "system.errors",
    "backend": "compiler.sources.dynamo", "bench": "api", "compact": "training.compactors", "export": "api",
    "finetune": "training.finetune", "from_pretrained": "training.pretrained", "inspect": "api", "measure": "api",
    "open_graph": "compiler.sources", "prune": "api", "save_pretrained": "training.pretrained", "verify": "api",
}  # fmt: skip
__all__ = [
    "Plan", "Result", "ToastcError", "backend", "bench", "compact", "export", "finetune", "from_pretrained", "inspect",
    "measure", "open_graph", "prune", "save_pretrained", "verify",
]  # fmt: skip


def __getattr__(name: str) -> _Any:
    """Names are looked up on first use, so that `import toastc` costs nothing and needs no framework."""
    if name not in _HOMES:
        raise AttributeError(f"module 'toastc' has no attribute {name!r}")
    module = _import_module(f"toastc.{_HOMES[name]}")
    return getattr(module, name, module)  # `finetune` is a module itself


class _Beside:
    """In a plain checkout `toastc.passes` is the folder beside this one. Installed, it is a folder in this one."""

    folder = _Path(__file__).resolve().parent.parent / "passes"

    @classmethod
    def find_spec(cls, name: str, path: _Any = None, target: _Any = None) -> _Any:
        if name == "toastc.passes":
            return _spec(name, cls.folder / "__init__.py", submodule_search_locations=[str(cls.folder)])
        return None


if (_Beside.folder / "match" / "flow.py").exists():
    _sys.meta_path.insert(0, _Beside)  # before those of another checkout that is installed
