"""Linears without a bias that need one: what goes has a mean, which the consumer's bias takes over."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from handwritten import saved, words
from oracle import check_module, check_onnx
from torch import nn

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
