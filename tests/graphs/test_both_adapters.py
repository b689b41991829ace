"""Linears without a bias that need one, which takes over the mean of what goes; attention in one call over other axes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from handwritten import saved, words
from oracle import check_module, check_onnx
from torch import nn
from zoo_exports import quiet

import toastc
from toastc import api
from toastc.graphs.fx import FxGraph
from toastc.graphs.onnx import OnnxGraph, load_model

torch.set_num_threads(1)


class Plain(nn.Module):
    """An attention and an FFN without any bias."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(24, 72, bias=False), nn.Linear(24, 24, bias=False)
        self.up, self.down = nn.Linear(24, 48, bias=False), nn.Linear(48, 24, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (2, 12)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


def test_a_file_gets_the_bias_that_a_shift_needs(tmp_path: Path) -> None:
    dense = saved(words(), tmp_path)
    pruned, _ = check_onnx(dense, tmp_path, basis=True)
    kinds = [node.op_type for node in onnx.load(pruned).graph.node]
    assert kinds.count("Add") == 1 and "Add" not in [node.op_type for node in onnx.load(dense).graph.node]


def test_a_module_gets_the_biases_that_shifts_need() -> None:
    torch.manual_seed(0)
    assert check_module(Plain().eval(), (torch.randn(2, 5, 24),), basis=True) <= 1e-4


class Windows(nn.Module):
    """Attention in one call: of one head, heads beside images (SAM), or windows before or behind the heads (Twins, Hiera)."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.norm = how, nn.LayerNorm(24)
        self.q, self.k, self.v, self.proj = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (linear(self.norm(x)) for linear in (self.q, self.k, self.v))
        if self.how == "one head":
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.how == "heads beside images":
            q, k, v = (t.unflatten(-1, (3, 8)).transpose(1, 2).flatten(0, 1) for t in (q, k, v))
            near = torch.arange(8)[:, None] >= torch.arange(8) - 3
            y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=near, scale=0.3)
            y = y.unflatten(0, (-1, 3)).transpose(1, 2).flatten(2)
        else:
            order = (0, 1, 3, 2, 4) if self.how == "windows first" else (0, 3, 1, 2, 4)
            q, k, v = (t.unflatten(1, (2, 4)).unflatten(-1, (3, 8)).permute(order) for t in (q, k, v))
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            y = y.permute([order.index(i) for i in range(5)]).flatten(3).flatten(1, 2)
        return x + self.proj(y)


@pytest.mark.parametrize("how", ["one head", "heads beside images", "windows first", "heads first"])
def test_attention_in_one_call_over_other_axes(how: str) -> None:
    torch.manual_seed(0)
    model, x = Windows(how).eval(), torch.randn(2, 8, 24)
    found = api.inspect(model, example_inputs=(x,))
    assert [(s["kind"], [c["prunable"] for c in s["couplings"]]) for s in found["sites"]] == [("attention", [True, True])]
    with torch.no_grad():
        whole = toastc.prune(model, {"attention": 0}, example_inputs=(x,), verify=False).model
        assert torch.allclose(whole(x), model(x), atol=1e-5), "taken apart, it says the same"
        small = toastc.prune(model, {"attention": 0.5, "round_to": 1}, recipe="magnitude", example_inputs=(x,)).model
        torch._dynamo.reset()
        options = {"ratios": {"attention": 0.5, "round_to": 1}, "recipe": "magnitude", "then": "eager"}
        assert torch.allclose(torch.compile(model, backend="toastc", options=options)(x), small(x), atol=1e-5)
    assert check_module(model, (x,)) <= 1e-4


def test_both_graphs_count_alike(tmp_path: Path) -> None:
    """Convolutions and those turned round, groups included."""
    layers = [nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Conv2d(6, 3, 1)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 4, 8, 8)
    with quiet():
        torch.onnx.export(model, (x,), tmp_path / "m.onnx", dynamo=False, input_names=["x"])
        module = FxGraph(torch.export.export(model, (x,)).module())
    counted = 8 * 8 * 8 * 2 * 9 + 8 * 8 * 8 * 6 * 4 + 16 * 16 * 3 * 6
    assert module.totals()[0] == OnnxGraph(load_model(tmp_path / "m.onnx")).totals()[0] == counted
