"""toastc: a compiler that makes Vision Transformers smaller and faster without retraining."""

from __future__ import annotations

from pathlib import Path as _Path

_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "passes" / "match" / "flow.py").exists():  # a plain checkout: toastc.passes is the folder beside
    __path__ = [*__path__, str(_checkout)]

__version__ = "0.1.0"
