"""The ONNX adapter: an `onnx_ir.Model` seen as a neutral list of ops, and the verbs that edit it.

Weights are never read here unless asked for: initializers stay external until a pass asks for their numbers,
and a cut weight is a lazy tensor, computed when the file is written.
"""

from __future__ import annotations

from .adapter import OnnxGraph
from .files import load_model, save_model

__all__ = ["OnnxGraph", "load_model", "save_model"]
