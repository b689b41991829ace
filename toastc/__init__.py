"""toastc: a compiler that makes Vision Transformers smaller and faster without retraining.

toastc.prune(model, ratios={"attention": 0.5, "ffn": 0.5}).model
torch.compile(model, backend=toastc.backend)
"""

from __future__ import annotations

from pathlib import Path as _Path
from typing import Any as _Any

_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "passes" / "match" / "flow.py").exists():  # a plain checkout: toastc.passes is the folder beside
    __path__ = [*__path__, str(_checkout)]

__version__ = "0.1.0"
_HOMES = {
    "Plan": "plan", "Result": "api", "backend": "dynamo", "bench": "api", "compact": "compactors", "export": "api",
    "from_pretrained": "pretrained", "inspect": "api", "measure": "measuring", "prune": "api", "save_pretrained": "pretrained",
    "verify": "api",
}  # fmt: skip
__all__ = [
    "Plan", "Result", "backend", "bench", "compact", "export", "from_pretrained", "inspect", "measure", "prune",
    "save_pretrained", "verify",
]  # fmt: skip


def __getattr__(name: str) -> _Any:
    """Names are looked up on first use, so that `import toastc` costs nothing and needs no framework."""
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f"toastc.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'toastc' has no attribute {name!r}")
