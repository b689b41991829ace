"""What a model does on real inputs: where the inputs come from, and the sums that are kept of what they cause."""

from __future__ import annotations

from .data import Batches, open_data
from .images import Preprocess
from .labels import Labels, has_class_folders
from .moments import Moments, Sums
from .resume import Unfinished, fingerprint
from .synthetic import Synthetic
from .workers import Workers

__all__ = [
    "Batches", "Labels", "Moments", "Preprocess", "Sums", "Synthetic", "Unfinished", "Workers", "fingerprint",
    "has_class_folders", "open_data",
]  # fmt: skip
