"""For other people's tests: is a pruned model what the plan says, and nothing else?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .compiler.forms import as_ir, is_torch
from .plans.plan import Plan
from .system.files import scratch


def assert_equivalent(dense: Any, pruned: Any, plan: Plan | None = None, *, example_inputs: Sequence[Any] | None = None) -> float:
    """Pad `pruned` back into `dense` and compare outputs; returns the error, raises AssertionError if it is too large.

    Takes what `toastc.prune` takes: paths, ModelProtos, gs.Graphs, or torch modules. An ONNX model carries its plan;
    a torch module has it as `toastc_plan`, or give it.
    """
    if is_torch(dense):
        from .compiler.sources.module import export
        from .passes.prove.modules import verify_modules

        gm, args = export(dense, example_inputs)
        result = verify_modules(gm, pruned, plan if plan is not None else pruned.toastc_plan, args)
    else:
        from .graphs.onnx import embed_plan, write_model
        from .passes.prove.files import verify_files

        with scratch() as folder:
            paths = []
            for name, model in (("dense", dense), ("pruned", pruned)):
                if isinstance(model, str | Path):
                    paths.append(Path(model))
                    continue
                loaded = as_ir(model)[1]
                if plan is not None and name == "pruned":
                    embed_plan(loaded, plan)
                paths.append(folder / f"{name}.onnx")
                write_model(loaded, paths[-1])
            result = verify_files(*paths)
    assert result.ok, f"not equivalent: {result.reason}"
    return float(result.error)
