"""ONNX Runtime's own nodes for what is left between attentions: SkipLayerNormalization, BiasGelu, ..."""

from __future__ import annotations

import onnx_ir as ir

from .files import one_line, unheard
from .graph import OnnxGraph


def fuse_for_runtime(graph: OnnxGraph) -> tuple[ir.Model, list[str]]:
    """By onnxscript's rules for ONNX Runtime, which need to know shapes and types; and why they were left out."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort  # a library that is slow to load

    plain = annotated(graph)
    try:
        with unheard():
            made: ir.Model = optimize_for_ort(plain.clone())[0]
    except Exception as error:  # noqa: BLE001  of rules that are not ours, on a copy
        return plain, [f"not fused: norms and biases; onnxscript fails: {one_line(error)}"]
    half_done = next((node for node in made.graph if node.domain == "ai.onnxruntime._fusion"), None)
    if half_done is not None:
        return plain, [f"not fused: norms and biases; onnxscript leaves {half_done.op_type} half done"]
    return made, []


def annotated(graph: OnnxGraph) -> ir.Model:
    """What is known of shapes and types, written to the model: sizes known at run time alone get a name each."""
    facts = graph.facts
    for value, shape in facts.shapes.items():
        if isinstance(value, ir.Value) and value.producer() is not None and not value.is_graph_output():
            known = zip(shape, graph.other.shapes.get(value, shape), strict=False)
            value.shape = ir.Shape([a if a == b else f"size_{a}_{b}" for a, b in known])
            value.type = ir.TensorType(ir.DataType(facts.dtypes[value])) if value in facts.dtypes else value.type
    return graph.model
