"""FFNs and attentions of convolutions: found, cut and proven in both adapters, and better for what is fitted."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from zoo_exports import quiet

import toastc


class Convolved(nn.Module):
    """An FFN of 1x1 convolutions, with a batch norm, and a depthwise convolution in its midst; `window`: of the last one."""

    def __init__(self, window: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 10)
        self.up, self.deep = nn.Conv2d(16, 64, 1, bias=False), nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.norm, self.down = nn.BatchNorm2d(64), nn.Conv2d(64, 16, window, padding=window // 2)
        self.norm.running_mean, self.norm.running_var = torch.randn(64) / 9, torch.rand(64) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(nn.functional.gelu(self.deep(self.norm(self.up(x)))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class ConvAttention(nn.Module):
    """Queries, keys and values of one 1x1 convolution, heads before channels, tokens last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.qkv, self.proj = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 192, 1), nn.Conv2d(64, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = self.qkv(x).reshape(-1, 3, 4, 16, 16).unbind(1)
        p = (q.transpose(-2, -1) @ k * 0.25).softmax(-1)
        out: Tensor = x + self.proj((v @ p.transpose(-2, -1)).reshape(-1, 64, 4, 4))
        return out


class Squeezed(nn.Module):
    """A squeeze-and-excitation between two convolutions: a second, small reader of the hidden channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.deep, self.down = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 3, 1)
        self.squeeze, self.excite = nn.Conv2d(64, 16, 1), nn.Conv2d(16, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.gelu(self.deep(self.up(x)))
        gate = self.excite(self.squeeze(h.mean((2, 3), keepdim=True)).relu()).sigmoid()
        out: Tensor = x + self.down(h * gate)
        return out


class Talking(ConvAttention):
    """Its heads talk to each other by convolutions, before the softmax and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = self.qkv(x).reshape(-1, 3, 4, 16, 16).unbind(1)
        p = self.after(self.before(q.transpose(-2, -1) @ k * 0.25).softmax(-1))
        mixed = (v @ p.transpose(-2, -1)).reshape(-1, 64, 4, 4)
        out: Tensor = x + self.proj(nn.functional.gelu(mixed))
        return out


class Row(nn.Module):
    """Two couplings that share a convolution: its rows are one's, its columns the other's."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 64, 1, bias=bias)
        self.norm, self.third = nn.Identity() if bias else nn.BatchNorm2d(64), nn.Conv2d(64, 8, 1, bias=bias)
        if isinstance(self.norm, nn.BatchNorm2d):
            self.norm.running_mean = torch.randn(64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.third(self.norm(self.second(self.first(x).relu())).relu())
        return out


@pytest.fixture(params=["torch", "onnx"])
def compiled(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Prunes a module, as it is or as a file."""

    def run(model: nn.Module, **words: object) -> toastc.Result:
        x = torch.randn(4, 3, 16, 16)
        if request.param == "torch":
            return toastc.prune(model.eval(), example_inputs=(x,), quiet=True, **words)
        with quiet():
            batch = {"x": {0: "batch"}}
            torch.onnx.export(model.eval(), (x,), tmp_path / "m.onnx", dynamo=False, input_names=["x"], dynamic_axes=batch)
        return toastc.prune(onnx.load(tmp_path / "m.onnx"), **words)

    return run


@pytest.mark.parametrize("recipe", ["magnitude", "default"])
@pytest.mark.parametrize("window", [1, 3])
def test_an_ffn_of_convolutions_is_cut(compiled, window: int, recipe: str) -> None:  # type: ignore[no-untyped-def]
    words = {} if recipe == "magnitude" else {"data": torch.randn(32, 3, 16, 16).numpy()}
    result = compiled(Convolved(window), ratios={"ffn": 0.5}, recipe=recipe, **words)
    (site,) = result.report.sites
    assert site.kind == "ffn"
    assert result.report.verified["ok"]
    per_place = 16 * 64 + 64 * 9 + 64 * 16 * window**2
    assert result.report.before.macs - result.report.after.macs == 256 * per_place // 2


def test_what_is_fitted_is_nearer(compiled) -> None:  # type: ignore[no-untyped-def]
    data = torch.randn(64, 3, 16, 16).numpy()
    blunt, fitted = (
        compiled(Convolved(), ratios={"ffn": 0.5}, recipe=recipe, data=data).report.measured["error"]
        for recipe in ("magnitude", "default")
    )
    assert fitted < 0.5 * blunt


@pytest.mark.parametrize("recipe", ["magnitude", "default"])
def test_an_attention_of_convolutions_is_cut(compiled, recipe: str) -> None:  # type: ignore[no-untyped-def]
    words = {} if recipe == "magnitude" else {"data": torch.randn(32, 3, 16, 16).numpy()}
    result = compiled(ConvAttention(), ratios={"attention": {"qk": 0.5, "vo": 0.5}}, recipe=recipe, **words)
    assert result.report.verified["ok"]
    assert result.report.after.macs < 0.75 * result.report.before.macs


def test_what_two_save_of_one_weight_is_counted_once(compiled) -> None:  # type: ignore[no-untyped-def]
    report = compiled(Row(), ratios={"ffn": 0.5}, recipe="magnitude").report
    assert len(report.couplings) == 2
    assert (report.before.macs, report.after.macs) == (64 * (27 * 32 + 32 * 64 + 64 * 8), 64 * (27 * 16 + 16 * 32 + 32 * 8))
    assert report.before.params - report.after.params == 27 * 16 + 16 + (32 * 64 - 16 * 32) + 32 + 32 * 8


def test_a_bias_that_was_not_there_is_cut_along(compiled) -> None:  # type: ignore[no-untyped-def]
    """It takes in what the channels in front lost, and its own channels are cut as well."""
    result = compiled(Row(bias=False), ratios={"ffn": 0.5}, recipe="default", data=torch.randn(32, 3, 16, 16).numpy())
    assert result.report.verified["ok"]


@pytest.mark.parametrize("recipe", ["magnitude", "default"])
def test_a_squeeze_and_excitation_goes_along(compiled, recipe: str) -> None:  # type: ignore[no-untyped-def]
    result = compiled(Squeezed(), ratios={"ffn": 0.5}, recipe=recipe, data=torch.randn(32, 3, 16, 16).numpy())
    assert result.report.verified["ok"] and len(result.report.couplings) == 2
    before, after = 256 * (3 * 64 * 2 + 9 * 64) + 2 * 64 * 16, 256 * (3 * 32 * 2 + 9 * 32) + 2 * 32 * 8
    assert (result.report.before.macs, result.report.after.macs) == (before, after)


@pytest.mark.parametrize("recipe", ["magnitude", "default"])
def test_heads_that_talk_by_convolutions(compiled, recipe: str) -> None:  # type: ignore[no-untyped-def]
    words = {"ratios": {"attention": {"qk": 0.5, "vo": 0.5}}, "data": torch.randn(32, 3, 16, 16).numpy()}
    result = compiled(Talking(), recipe=recipe, **words)
    assert result.report.verified["ok"]
    assert {name.rpartition(".")[2] for name in result.plan.choices} == {"qk", "vo"}


@pytest.mark.parametrize("recipe", ["magnitude", "default"])
def test_a_target_is_met_where_couplings_share_a_weight(compiled, recipe: str) -> None:  # type: ignore[no-untyped-def]
    data = torch.randn(32, 3, 16, 16).numpy()
    report = compiled(Row(), target="macs=0.6", recipe=recipe, data=data).report
    assert 0.45 < report.after.macs / report.before.macs <= 0.6
