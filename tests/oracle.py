"""The one strong assertion: whatever was cut, the pruned model is the dense one with zeros in it.

`check_onnx` and `check_module` shrink a model, look at everything that must not have changed, and prove the result
by pad-back equality. `random_plan` cuts at random, so that a rewrite is tested apart from any score.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

import toastc
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.passes.match import match
from toastc.plans.plan import Basis, Choice, Keep, Plan
from toastc.plans.sites import Site

TOLERANCE = 1e-4


def random_plan(sites: Sequence[Site], seed: int = 0, share: float = 0.5, basis: bool = False, heads: bool = True) -> Plan:
    """Narrower v than k, one head fewer where heads may go, and random rotations where they are allowed."""
    rng = np.random.default_rng(seed)
    choices: dict[str, Choice] = {}
    for site in sites:
        for coupling in site.couplings:
            if not coupling.prunable:
                continue
            width = max(2, int(coupling.width * share * (0.75 if coupling.name == "vo" else 1)))
            if basis and coupling.rotatable:
                turns = [
                    np.linalg.qr(rng.standard_normal((coupling.width, coupling.width)))[0][:, :width]
                    for _ in range(coupling.groups)
                ]
                shift = rng.standard_normal((coupling.groups, coupling.width)) if coupling.consumed else None
                choices[f"{site.name}.{coupling.name}"] = Basis(np.stack([t.T for t in turns]), np.stack(turns), shift)
            else:
                rows = [np.sort(rng.choice(coupling.width, width, replace=False)) for _ in range(coupling.groups)]
                fold, shift = None, None
                if basis and coupling.consumed and coupling.groups == 1:
                    fold = rng.standard_normal((coupling.width, width)) / np.sqrt(width)
                    shift = rng.standard_normal((1, coupling.width))
                choices[f"{site.name}.{coupling.name}"] = Keep(np.stack(rows), fold, shift)
        if not basis and site.inputs is not None:
            kept = np.sort(rng.choice(site.inputs.width, max(2, int(site.inputs.width * 0.7)), replace=False))
            choices[f"{site.name}.inputs"] = Keep(kept[None])
        if heads and site.heads is not None and site.heads.prunable and site.heads.width > 1:
            kept = np.sort(rng.choice(site.heads.width, site.heads.width - 1, replace=False))
            choices[f"{site.name}.heads"] = Keep(kept[None])
    return Plan(choices)


def interface(path: Path) -> list[Any]:
    """Names, types and shapes of inputs and outputs."""
    graph = onnx.load(path, load_external_data=False).graph
    names = {i.name for i in graph.initializer}
    return [(v.name, v.type.SerializeToString()) for v in (*graph.input, *graph.output) if v.name not in names]


def check_onnx(
    dense: Path, folder: Path, *, plan: Plan | None = None, ratios: Any = None, basis: bool = False, seed: int = 0
) -> tuple[Path, Any]:
    """Shrink `dense`; returns the pruned file and the report."""
    before = dense.read_bytes()
    if plan is None and ratios is None:
        plan = random_plan(match(OnnxGraph(load_model(dense)))[1], seed, basis=basis)
    pruned = folder / f"pruned-{basis}-{seed}.onnx"
    result = toastc.prune(dense, ratios, plan=plan, recipe="magnitude", output=pruned)
    made, report = result.plan, result.report
    assert dense.read_bytes() == before, "the input file was touched"
    assert report.verified is not None
    assert report.verified["ok"], report.verified["reason"]
    assert report.verified["error"] <= TOLERANCE
    onnx.checker.check_model(str(pruned))
    assert interface(pruned) == interface(dense)
    again = OnnxGraph(load_model(pruned))
    macs, params = again.totals()
    assert params == report.after.params < report.before.params
    assert macs == report.after.macs < report.before.macs
    widths = {f"{s.name}.{c.name}": c.width for s in match(again)[1] for c in s.every}
    for name, choice in made.choices.items():
        if not name.endswith(".heads"):
            assert widths[name] == choice.width
    return pruned, report


def check_module(model: Any, args: Sequence[Any], *, basis: bool = False, seed: int = 0) -> float:
    """The same for a torch module, through torch.export, or for a graph that came of it."""
    from torch.fx import GraphModule

    from toastc.graphs.fx import FxGraph
    from toastc.graphs.fx.capture import capture as export
    from toastc.graphs.fx.capture import reread, shared_copy
    from toastc.passes.prove.modules import verify_modules
    from toastc.passes.shrink import shrink

    gm, args = (copy.deepcopy(model), args) if isinstance(model, GraphModule) else export(model, args)
    dense, graph = copy.deepcopy(gm), FxGraph(gm)
    ledger, sites, _ = match(graph)
    plan = random_plan(sites, seed, basis=basis)
    parameters = sum(p.numel() for p in gm.parameters())
    shrink(graph, ledger, sites, plan)
    result = verify_modules(FxGraph(dense), reread(shared_copy(gm), args), plan, args)
    assert result.ok, result.reason
    assert sum(p.numel() for p in gm.parameters()) < parameters
    return result.error


def leaf(out: Any) -> Any:
    """The first tensor of whatever a module returns."""
    from torch.utils._pytree import tree_leaves

    return tree_leaves(out)[0]


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    return {k: v.const_value.numpy() for k, v in ir.load(path).graph.initializers.items() if v.const_value is not None}
