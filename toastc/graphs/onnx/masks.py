"""Attention masks that forbid nothing: transformers makes such ones of sizes and constants."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ...system.vocabulary import Operand
from .. import Op
from .facts import evaluate
from .names import operator_of
from .operators import operator
from .reader import OnnxReader

LARGE = 1 << 25  # elements of a mask that is worked out


def adds_nothing(graph: OnnxReader, op: Op, slot: int) -> bool:
    """A mask of zeros for pairs of tokens."""
    known: Operand = graph.facts.shapes
    other, out, mask = (known.get(v, ()) for v in (op.inputs[1 - slot], op.outputs[0], op.inputs[slot]))
    pairs = len(mask) > 2 and mask[-2] == mask[-1] > 1 and op.outputs[0] not in graph.outputs
    return pairs and other == out and is_idle(graph, op, slot)


def is_idle(graph: OnnxReader, op: Op, slot: int) -> bool:
    value: Operand = op.inputs[slot] if slot < len(op.inputs) else None
    made = None if value is None else computed(graph, value, {})
    return made is not None and bool(made.all() if made.dtype == bool else not made.any())


def computed(graph: OnnxReader, value: ir.Value, known: dict[ir.Value, np.ndarray | None]) -> np.ndarray | None:
    """What a value is for the sizes the graph is looked at with; None unless sizes and constants alone make it."""
    if value not in known:
        node, known[value] = value.producer(), None
        if value in graph.facts.data:
            known[value] = graph.facts.data[value]
        elif graph.is_constant(value):
            known[value] = graph.constant(value)
        elif node is not None and not operator(operator_of(node)).random and is_small(graph, value):
            wanted = [v for v in node.inputs if v is not None]
            given = [array for v in wanted if (array := computed(graph, v, known)) is not None]
            if given and len(given) == len(wanted):
                known[value] = evaluate(node, given, graph.opsets)[node.outputs.index(value)]
    return known[value]


def is_small(graph: OnnxReader, value: ir.Value) -> bool:
    return math.prod(graph.facts.shapes.get(value, (LARGE,))) < LARGE
