"""The MACs of one sample of a file: as its maker said, or counted."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ...errors import ToastcError
from .adapter import OnnxGraph
from .files import MACS_KEY, QUANTIZED, load_model


def macs_of(path: Path) -> int | None:
    """None of a file with 8-bit linears that somebody else made."""
    if not path.is_file():
        raise ToastcError(f"{path}: no such file")
    try:
        raw = ir.load(path)
    except Exception:  # noqa: BLE001  what is wrong with it is said by the next line
        return OnnxGraph(load_model(path)).totals()[0]
    said = raw.metadata_props.get(MACS_KEY, "")
    if said.isdigit():
        return int(said)
    return None if any(node.op_type in QUANTIZED for node in raw.graph) else OnnxGraph(load_model(path)).totals()[0]
