"""The torch.fx adapter: graphs of `torch.export` and of Dynamo seen as a neutral list of ops, and edited.

One table serves both dialects: `aten.view.default`, `torch.reshape` and the method `reshape` are told apart by
nothing but their names, and labels are pushed by calling each node's own target on integer tensors.
"""

from __future__ import annotations

from .builder import CHOSEN
from .editor import drop_unused
from .graph import FxGraph

__all__ = ["CHOSEN", "FxGraph", "drop_unused"]
