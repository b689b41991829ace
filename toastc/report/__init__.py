"""One result, three faces: a table on the terminal, JSON, and (elsewhere) a page."""

from __future__ import annotations

from .data import CouplingRow, Report, Size

__all__ = ["CouplingRow", "Report", "Size"]
