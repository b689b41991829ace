"""Masks that hide nothing are left out; one that is filled in after it is made hides something."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import toastc
from toastc.graphs.fx import FxGraph
from toastc.graphs.fx.capture import capture


class Masked(nn.Module):
    def __init__(self, filled: bool, spelt: bool) -> None:
        super().__init__()
        self.filled, self.spelt = filled, spelt
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (2, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, 2))
        mask = torch.zeros(x.shape[1], x.shape[1])
        if self.filled:
            mask[:2, 3:] = -100.0
        if self.spelt:
            made = (q @ k.transpose(2, 3) / 8**0.5 + mask).softmax(-1) @ v
        else:
            made = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(made.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("spelt", [False, True])
@pytest.mark.parametrize("filled", [False, True])
def test_only_what_hides_nothing_goes(filled: bool, spelt: bool) -> None:
    torch.manual_seed(0)
    model, x = Masked(filled, spelt).eval(), torch.randn(2, 5, 16)
    gm = FxGraph(capture(model, (x,))[0]).without_idle_masks().gm
    made = [n for n in gm.graph.nodes if "zeros" in str(n.target)]
    assert bool(made) == filled
    with torch.no_grad():
        assert torch.allclose(gm(x), model(x), atol=1e-6)
        small = toastc.prune(model, {"attention": 0.5}, recipe="magnitude", example_inputs=(x,))
        graph = toastc.prune(model, {"attention": 0.5}, recipe="magnitude", example_inputs=(x,), as_graph=True)
        assert isinstance(small.model, Masked) and torch.allclose(small.model(x), graph.model(x), atol=1e-6)
