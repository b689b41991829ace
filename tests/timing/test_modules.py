"""A latency target for torch modules: blocks of given sizes as functions, timed where the module is."""

from __future__ import annotations

import pytest
import timm
import torch

import toastc
from toastc.graphs.fx.blocks import block_function, milliseconds
from toastc.plans.latency import Block

torch.set_num_threads(1)
SIZES = [
    Block(rows=12, tokens=4, dim=16, out=16, heads=2, qk=3, vo=5, hidden=0, gated=False),
    Block(rows=12, tokens=4, dim=16, out=8, heads=0, qk=0, vo=0, hidden=20, gated=False),
    Block(rows=12, tokens=4, dim=16, out=8, heads=0, qk=0, vo=0, hidden=20, gated=True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", SIZES, ids=["attention", "ffn", "gated"])
def test_a_block_of_given_sizes_runs(block: Block, dtype: torch.dtype) -> None:
    run, like = block_function(block, torch.zeros(1, dtype=dtype)), torch.zeros(1, dtype=dtype)
    made = run()
    assert (made.shape, made.dtype) == ((3, 4, block.out), dtype)
    assert torch.equal(made, run()) and made.isfinite().all() and made.std() > 0
    assert milliseconds(run, like, times=1) > 0


def test_a_module_becomes_as_fast_as_asked() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, depth=2, num_classes=5).eval()
    made = toastc.prune(model, target="latency=0.9", data=torch.randn(8, 3, 64, 64), batch=2)
    assert made.report.verified is not None and made.report.verified["ok"]
    assert made.report.after.macs < made.report.before.macs
    assert any("of the time" in note or "ms" in note for note in made.report.notes), made.report.notes
