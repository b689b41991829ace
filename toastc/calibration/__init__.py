"""What a model does on real inputs: where the inputs come from, and the sums that are kept of what they cause."""

from __future__ import annotations

from .data import Batches, open_data
from .images import Preprocess
from .moments import Moments, Sums
from .resume import Unfinished, fingerprint
from .synthetic import Synthetic
from .workers import Workers

__all__ = ["Batches", "Moments", "Preprocess", "Sums", "Synthetic", "Unfinished", "Workers", "fingerprint", "open_data"]
