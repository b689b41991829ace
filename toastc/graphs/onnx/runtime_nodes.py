"""ONNX Runtime's own nodes for what is left between attentions: SkipLayerNormalization, BiasGelu, ..."""

from __future__ import annotations

import onnx_ir as ir

from .adapter import OnnxGraph


def fuse_for_runtime(graph: OnnxGraph) -> ir.Model:
    """By onnxscript's rules for ONNX Runtime, which need to know shapes and types."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    return optimize_for_ort(graph.annotated())[0]
