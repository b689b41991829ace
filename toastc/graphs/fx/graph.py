"""An fx graph that can be looked at, run and changed."""

from __future__ import annotations

from .editor import FxEditor
from .runner import FxRunner


class FxGraph(FxEditor, FxRunner):
    """What a compile works on."""
