"""The MACs of one sample of a file: as its maker said, or counted."""

from __future__ import annotations

from pathlib import Path

from .embedded import MACS_KEY
from .files import prepare, read_model
from .graph import OnnxGraph
from .recovered import is_quantised


def macs_of(path: Path) -> int | None:
    """None of a file with 8-bit linears that somebody else made."""
    model = read_model(path)
    said = model.metadata_props.get(MACS_KEY, "")
    if said.isdigit():
        return int(said)
    return None if is_quantised(model) else OnnxGraph(prepare(model, str(path))).totals()[0]
