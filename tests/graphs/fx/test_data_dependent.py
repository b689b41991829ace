"""Modules in which a size hangs on numbers: tokens behind a threshold are picked, counted, or pad something."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from zoo_exports import quiet

import toastc
from toastc.graphs.fx import FxGraph
from toastc.graphs.fx.capture import capture as export
from toastc.system.errors import CannotShrink, VerificationFailed

HALF = {"attention": 0.5, "ffn": 0.5}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def count(y: Tensor, x: Tensor) -> int:
    found: int = (x[:, 0, 0] > 0).sum().item()  # type: ignore[assignment]
    torch._check(found <= 64)
    return found


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "where they are": lambda y, x: (y[:, 1:, 0] > 0).nonzero(),
    "those alone": lambda y, x: y[y[..., 0] > 0].softmax(0),
    "those and others": lambda y, x: torch.cat([y[y[..., 0] > 0], y[0]], 0),
    "those, by heads": lambda y, x: y[y[..., 0] > 0].reshape(-1, 4, 12).sum(1),
    "how many": lambda y, x: y.mean((0, 1)) + (y[..., 0] > 0).sum().item(),
    "up to how many": lambda y, x: torch.arange((y[..., 0] > 0).sum().item()),
    "so many": lambda y, x: y[:, : count(y, x)],
    "so many more": lambda y, x: torch.cat([y, y.new_zeros(2, count(y, x), 48)], 1).mean(1),
    "so many times": lambda y, x: y.mean(1, keepdim=True).expand(2, count(y, x), 48),
    "so much wider": lambda y, x: nn.functional.pad(y, (0, count(y, x))),
}
MERGED = {"how many", "up to how many", "so many times"}  # the others take merged tokens apart


class Picking(nn.Module):
    def __init__(self, way: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
        self.vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="", **sizes)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.vit(x), x)


@pytest.mark.parametrize("way", WAYS)
def test_channels_go_and_merged_tokens_are_not_picked(way: str) -> None:
    model = Picking(WAYS[way]).eval()
    with quiet():
        made = toastc.prune(model, HALF, recipe="magnitude", example_inputs=(IMAGES,))
    assert made.report.verified is not None and made.report.verified["ok"]
    assert made.report.after.macs < 0.7 * made.report.before.macs
    if way in MERGED:
        with quiet():
            merged = toastc.prune(model, tokens="h1", recipe="magnitude", example_inputs=(IMAGES,))
        assert merged.report.verified is not None and merged.report.verified["ok"]
    else:
        with quiet(), pytest.raises(CannotShrink, match="takes merged tokens and has an output whose shape is only known at run"):
            toastc.prune(model, tokens="h1", recipe="magnitude", example_inputs=(IMAGES,))


def test_a_model_that_asserts_something_of_its_inputs() -> None:
    few = torch.randn(2, 3, 32, 32) - 9  # nothing above zero: what is drawn at random has more
    model = Picking(lambda y, x: y.mean((0, 1)) + torch.zeros(count(y, x.reshape(1, 1, 1, -1))).sum()).eval()
    with quiet(), pytest.raises(VerificationFailed, match=r"random inputs can not be run .*Runtime assertion failed"):
        toastc.prune(model, HALF, recipe="magnitude", example_inputs=(few,))


def test_a_size_that_can_not_be_told_any_more() -> None:
    """An edit after which torch would have to know a number that is only there at run time."""
    model = Picking(lambda y, x: y.new_zeros(count(y, x), 8).reshape(-1, 4)).eval()
    with quiet():
        gm: GraphModule = export(model, (IMAGES,))[0]
        graph = FxGraph(gm)
        reshape = [op for op in graph.ops if op.type in ("reshape", "view")][-1]
        reshape.node.update_arg(1, [3, 4])
        with pytest.raises(CannotShrink, match=r"the sizes in the edited graph can not be told .*is invalid for input"):
            graph.reopened()
