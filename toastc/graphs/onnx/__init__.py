"""The ONNX adapter: an `onnx_ir.Model` seen as a neutral list of ops, and the verbs that edit it.

Weights are never read here unless asked for: initializers stay external until a pass asks for their numbers,
and a cut weight is a lazy tensor, computed when the file is written.
"""

from __future__ import annotations

from . import upcast
from .embedded import carries_plan, embed_plan, plan_of
from .facts import sizes_for
from .files import external_files, file_bytes, is_external, load_model, prepare, read_model, staged, write_model
from .graph import OnnxGraph
from .inputs import sample_inputs
from .macs import macs_of
from .precision import to_half
from .recovered import is_quantised
from .runtime_nodes import fuse_for_runtime

__all__ = [
    "OnnxGraph", "carries_plan", "embed_plan", "external_files", "file_bytes", "fuse_for_runtime", "is_external", "is_quantised",
    "load_model", "macs_of", "plan_of", "prepare", "read_model", "sample_inputs", "sizes_for", "staged", "to_half", "upcast",
    "write_model",
]  # fmt: skip
