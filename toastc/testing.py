"""For other people's tests: is a pruned model what the plan says, and nothing else?"""

from __future__ import annotations

from .compiler.sources import room_of
from .plans.plan import Plan
from .system.vocabulary import Inputs, Model


def assert_equivalent(dense: Model, pruned: Model, plan: Plan | None = None, *, example_inputs: Inputs | None = None) -> float:
    """Pad `pruned` back into `dense` and compare outputs; returns the error, raises AssertionError if it is too large.

    Takes what `toastc.prune` takes: paths, ModelProtos, gs.Graphs, or torch modules. An ONNX model carries its plan;
    a torch module has it as `toastc_plan`, or give it.
    """
    result = room_of(dense).prove(dense, pruned, plan, example_inputs)
    assert result.ok, f"not equivalent: {result.reason}"
    return float(result.error)
