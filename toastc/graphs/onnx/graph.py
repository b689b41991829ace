"""An ONNX graph that can be looked at, run and changed."""

from __future__ import annotations

from .editor import OnnxEditor
from .runner import OnnxRunner


class OnnxGraph(OnnxEditor, OnnxRunner):
    """What a compile works on."""
