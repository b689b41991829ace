"""Slices, turns and joins of channels between a linear and the next: what they pick of what is left, in every place of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo_exports import quiet

import toastc
from toastc.passes.prove.files import verify_files
from toastc.system.errors import CannotShrink

HALF = {"attention": {"qk": 0.5, "vo": 0.25}, "ffn": 0.5, "round_to": 1}
X = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
Change = Callable[..., Tensor]


class Block(nn.Module):
    """`packed` changes queries, keys and values while they are one tensor, `values` the values, `hidden` the FFN's two."""

    def __init__(
        self,
        packed: Change = lambda y: y,
        values: Change = lambda v: v,
        hidden: Change = lambda h, g: h.relu(),
        rest: Change | None = None,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.packed, self.values, self.hidden, self.rest = packed, values, hidden, rest
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.qkv, self.proj, self.up, self.gate = (nn.Linear(32, n) for n in (96, 32, 128, 128))
        self.down = nn.Linear(hidden(*torch.zeros(2, 1, 128)).shape[1], 32)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.packed(self.qkv(self.norms[0](x)).view(b, n, 3, 2, 16).permute(2, 0, 3, 1, 4)).unbind(0)
        mixed = (q @ k.transpose(-1, -2) / 4).softmax(-1) @ self.values(v)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, n, d))
        y = self.norms[1](x)
        h = self.up(y)
        x = x + self.down(self.hidden(h, self.gate(y)))
        return x + 0.1 * self.rest(h) if self.rest else x


def taken_along(h: Tensor, g: Tensor) -> Tensor:
    return h.take_along_dim(APART.expand(*h.shape[:-1], 96), -1).relu()


def exported(model: nn.Module, path: Path) -> Path:
    with quiet():
        torch.onnx.export(
            model.eval(), (X,), path, dynamo=True, opset_version=20, input_names=["x"], external_data=False, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    return path


def paired(h: Tensor) -> Tensor:
    return h[..., ::2] * h[..., 1::2].tanh()


def shuffled(h: Tensor, groups: int = 4) -> Tensor:
    return h.unflatten(-1, (groups, -1)).transpose(-1, -2).flatten(-2)


MODELS: dict[str, dict[str, Any]] = {
    "the first half": {"hidden": lambda h, g: h[..., :64].relu()},
    "the second half": {"hidden": lambda h, g: h[..., 64:].relu()},
    "every other": {"hidden": lambda h, g: h[..., ::2].relu()},
    "every other of a product": {"hidden": lambda h, g: (h.relu() * g)[..., ::2]},
    "the middle of a product": {"hidden": lambda h, g: (h.relu() * g)[..., 10:100]},
    "pairs": {"hidden": lambda h, g: h[..., ::2] * h[..., 1::2].sigmoid()},
    "backwards": {"hidden": lambda h, g: h.flip(-1).relu()},
    "turned": {"hidden": lambda h, g: h.roll(3, -1).relu()},
    "the first of two alike": {"hidden": lambda h, g: torch.cat([h, h.relu()], -1)[..., :128]},
    "the second of two alike": {"hidden": lambda h, g: torch.cat([h, h.relu()], -1)[..., 128:]},
    "shuffled": {"hidden": lambda h, g: shuffled(h.relu())},
    "shuffled first": {"hidden": lambda h, g: torch.stack([shuffled(h, 2), shuffled(h, 2).sigmoid()], -2).flatten(-2).relu()},
    "of those unread some": {"hidden": lambda h, g: (h[..., 38:83].sigmoid() * h[..., 83:])[..., 1:-2]},
    "unread between pairs": {
        "hidden": lambda h, g: shuffled(torch.stack([paired(h), paired(h).sigmoid()], -1).flatten(-2)[..., 88:])
    },
    "four of each": {
        "hidden": lambda h, g: torch.cat((paired(h)[..., :32].sigmoid() * paired(h)[..., 32:]).chunk(3, -1)[:2], -1)
    },
    "values twice": {"values": lambda v: torch.cat([v, v], -1)[..., 16:]},
}
APART = torch.randperm(128, generator=torch.Generator().manual_seed(0))[:96]
FILES: dict[str, Change] = {
    "far apart": lambda h, g: h[..., APART].relu(),
    "far apart, in two dimensions": lambda h, g: h[..., APART[None]].flatten(-2).relu(),
    "of two alike": lambda h, g: torch.cat([h.relu(), h.relu().relu()], -1)[..., APART + 100],
}


@pytest.mark.parametrize("what", MODELS)
def test_what_is_picked_is_what_was_picked(what: str, tmp_path: Path) -> None:
    model = Block(**MODELS[what]).eval()
    with quiet():
        module = toastc.prune(model, HALF, recipe="magnitude", example_inputs=(X,))
    file = toastc.prune(exported(model, tmp_path / "m.onnx"), HALF, recipe="magnitude")
    for made in (module, file):
        assert made.report.verified is not None and made.report.verified["ok"]
        assert made.report.after.macs < 0.75 * made.report.before.macs
        assert made.plan.choices["up.hidden" if "up.hidden" in made.plan.choices else "mlp.hidden"]


class Order(nn.Module):
    """Channels of heads side by side, or heads of channels: where queries, keys and values part, and where they meet."""

    def __init__(self, apart: str, joined: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.apart, self.joined, self.qkv, self.proj = apart, joined, nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        packed = self.qkv(x)
        by_head = packed.view(b, n, 3, 2, 16) if self.apart == "heads" else packed.view(b, n, 3, 16, 2).transpose(-1, -2)
        q, k, v = by_head.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = ((q @ k.transpose(-1, -2)) / 4).softmax(-1) @ v
        rows = mixed.permute(0, 2, 1, 3) if self.joined == "heads" else mixed.permute(0, 2, 3, 1)
        return x + self.proj(rows.reshape(b, n, d))


@pytest.mark.parametrize("joined", ["heads", "channels"])
@pytest.mark.parametrize("apart", ["heads", "channels"])
def test_heads_of_which_every_one_keeps_others(apart: str, joined: str, tmp_path: Path) -> None:
    model = Order(apart, joined).eval()
    with quiet():
        module = toastc.prune(model, HALF, recipe="magnitude", example_inputs=(X,))
    for made in (module, toastc.prune(exported(model, tmp_path / "m.onnx"), HALF, recipe="magnitude")):
        assert made.report.verified is not None and made.report.verified["ok"]
        assert len(made.plan.choices) == 2


@pytest.mark.parametrize("what", FILES)
def test_positions_that_a_file_carries(what: str, tmp_path: Path) -> None:
    made = toastc.prune(exported(Block(hidden=FILES[what]), tmp_path / "m.onnx"), HALF, recipe="magnitude")
    assert made.report.verified is not None and made.report.verified["ok"]
    assert "mlp.hidden" in made.plan.choices


def test_picks_on_two_axes_are_refused_and_what_is_not_understood_is_named(tmp_path: Path) -> None:
    turned = Block(hidden=lambda h, g: h.roll((1, 3), (h.ndim - 2, h.ndim - 1)).relu()).eval()
    with pytest.raises(CannotShrink, match=r"roll \(roll\): it can not be told how it picks from an axis that is cut"), quiet():
        toastc.prune(turned, HALF, recipe="magnitude", example_inputs=(X,))
    drawn = Block(hidden=taken_along).eval()
    with quiet():
        module = toastc.prune(drawn, HALF, recipe="magnitude", example_inputs=(X,))
    assert [r.reason for r in module.report.rejects] == ["take_along_dim (take_along_dim) picks positions at run time"]
    file = toastc.prune(exported(drawn, tmp_path / "m.onnx"), HALF, recipe="magnitude")
    assert "mlp.hidden" in file.plan.choices  # there it is known


def test_one_channel_by_itself_stands_elsewhere_now(tmp_path: Path) -> None:
    """Unless it is gone, and something would have to be made of nothing."""
    model = Block(hidden=lambda h, g: torch.cat([h[..., :64], h[..., 127].unsqueeze(-1)], -1).relu()).eval()
    for loud in (30.0, 1e-4):
        with torch.no_grad():
            model.up.weight[127] *= loud
        path = exported(model, tmp_path / "m.onnx")
        if loud < 1:
            with quiet(), pytest.raises(CannotShrink, match="is no grid"):
                toastc.prune(model, HALF, recipe="magnitude", example_inputs=(X,))
            with pytest.raises(CannotShrink, match="is no grid"):
                toastc.prune(path, HALF, recipe="magnitude")
            continue
        with quiet():
            module = toastc.prune(model, HALF, recipe="magnitude", example_inputs=(X,))
        for made in (module, toastc.prune(path, HALF, recipe="magnitude")):
            assert made.report.verified is not None and made.report.verified["ok"]
            assert made.plan.choices["mlp.hidden"].index.max() == 64


def test_one_channel_that_the_stream_takes_is_a_reason(tmp_path: Path) -> None:
    model = Block(rest=lambda h: h[..., 127].unsqueeze(-1)).eval()
    with quiet():
        module = toastc.prune(model, HALF, recipe="magnitude", example_inputs=(X,))
    for made in (module, toastc.prune(exported(model, tmp_path / "m.onnx"), HALF, recipe="magnitude")):
        assert "combines it with a tensor no linear makes" in made.report.rejects[0].reason


def test_rows_that_somebody_reads_are_not_taken_for_unread(tmp_path: Path) -> None:
    """The same weights, but half of the first linear's rows are read in one model and go unread in the other."""
    rests: tuple[Change | None, ...] = (None, lambda h: h[..., 64:].sum(-1, keepdim=True))
    unread, read = ({"hidden": lambda h, g: h[..., :64].relu(), "rest": rest} for rest in rests)
    dense = exported(Block(**read), tmp_path / "read.onnx")
    made = toastc.prune(exported(Block(**unread), tmp_path / "unread.onnx"), HALF, recipe="magnitude", output=tmp_path / "o.onnx")
    assert made.report.verified is not None and made.report.verified["ok"]
    assert verify_files(tmp_path / "unread.onnx", tmp_path / "o.onnx").ok
    assert not verify_files(dense, tmp_path / "o.onnx").ok


@pytest.mark.parametrize(
    ("packed", "instead"), [(lambda y: y * 2.0, 0.5), (lambda y: torch.stack([*y]).relu(), 0)], ids=["scaled", "stacked"]
)
def test_different_widths_in_one_tensor_are_said(packed: Change, instead: float, tmp_path: Path) -> None:
    model = Block(packed=packed).eval()
    with pytest.raises(CannotShrink, match=r"is no grid.*give all of it the same ratio, or 0"), quiet():
        toastc.prune(model, HALF, recipe="magnitude", example_inputs=(X,))
    made = toastc.prune(exported(model, tmp_path / "m.onnx"), HALF | {"attention": instead}, recipe="magnitude")
    assert made.report.verified is not None and made.report.verified["ok"]
