"""A graph run in stretches gives what it gives in one piece, wherever it is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import ZooFile
from zoo_exports import quiet
from zoo_models import FAMILIES

from toastc.compiler.sources import open_graph
from toastc.graphs.onnx import OnnxGraph, load_model, sample_inputs, sizes_for
from toastc.system.arrays import as_array

torch.set_num_threads(1)


def check(graph: Any, feed: dict[str, np.ndarray], every: int) -> None:
    values = [op.outputs[0] for op in graph.ops if op.outputs[0] is not None][::every]
    values = sorted({v: None for v in values if v not in graph.outputs}, key=graph.position)
    outputs, watched = graph.probe(values)(feed)
    live = graph.begin(feed)
    for number, stage in enumerate(graph.stages(values)):
        live = stage(live)
        if number < len(values):
            assert np.allclose(as_array(live[values[number]]), as_array(watched[number]), atol=1e-5)
    made = [as_array(live[v]) for v in graph.outputs]
    for expected in map(as_array, outputs):
        assert any(a.shape == expected.shape and np.allclose(a, expected, atol=1e-5) for a in made)
    assert set(live) == set(graph.outputs), "nothing outlives its last use"


ONNX = [("deit_tiny", "dynamo20-dyn"), ("swin_tiny", "ts17-dyn"), ("eva02_tiny", "dynamo20-dyn"), ("deit_tiny", "ort-dyn"),
        ("hf_detr", "ts17")]  # fmt: skip


@pytest.mark.parametrize(("name", "variant"), [case for case in ONNX if case[0] in FAMILIES])
@pytest.mark.parametrize("every", [1, 7])
def test_onnx_in_stages(zoo_file: ZooFile, name: str, variant: str, every: int) -> None:
    model = load_model(zoo_file(name, variant))
    check(OnnxGraph(model), sample_inputs(model, sizes_for(model), 0), every)


@pytest.mark.parametrize("name", ["deit_tiny", "swin_tiny", "eva02_tiny", "torch_encoder"])
def test_torch_in_stages(name: str) -> None:
    family = FAMILIES[name]
    with quiet():
        args = tuple(family.inputs(False, 2).values())
        graph = open_graph(family.small().eval(), args)
        check(graph, {node.name: a.numpy() for node, a in zip(graph.inputs, args, strict=True)}, 3)
