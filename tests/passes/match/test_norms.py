"""Norms over channels that are cut: of each head, of all heads, of hidden channels; as one node and spelt out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from oracle import check_module
from torch import Tensor, nn
from zoo_exports import quiet

import toastc
from toastc import api

HEADS, WIDTH = 2, 8
DIM = HEADS * WIDTH
Norm = Callable[[Tensor], Tensor]


def root_mean_square(x: Tensor) -> Tensor:
    """Spelt out, as transformers does: in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 0.1)).to(x.dtype)


def layer_norm(x: Tensor) -> Tensor:
    """Spelt out, as files older than opset 17 have it."""
    mean = x.mean(-1, keepdim=True)
    apart = x - mean
    return apart / torch.sqrt((apart * apart).mean(-1, keepdim=True) + 0.1)


def response(x: Tensor) -> Tensor:
    """ConvNeXt V2's: how loud a channel is over all tokens, beside the others."""
    loud = x.norm(p=2, dim=1, keepdim=True)
    return x + x * (loud / (loud.mean(-1, keepdim=True) + 0.1))


class Scaled(nn.Module):
    """A norm by hand, with a scale and a shift."""

    def __init__(self, norm: Norm, width: int, shift: bool = False) -> None:
        super().__init__()
        self.norm, self.weight = norm, nn.Parameter(torch.rand(width) + 0.5)
        self.bias = nn.Parameter(torch.randn(width)) if shift else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x) * self.weight
        return y if self.bias is None else y + self.bias


def whole(width: int) -> nn.LayerNorm:
    """With numbers of its own."""
    norm = nn.LayerNorm(width, eps=0.1)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    return norm


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer norm": whole,
    "layer norm, spelt out": lambda width: Scaled(layer_norm, width, shift=True),
    "rms": lambda width: nn.RMSNorm(width, eps=0.1),
    "rms, spelt out": lambda width: Scaled(root_mean_square, width),
}


class Normed(nn.Module):
    """Queries and keys normed by head or as a whole, hidden channels before they are read. Biases far from 0: means count."""

    def __init__(self, by_head: nn.Module | Norm | None, whole: nn.Module | None, hidden: nn.Module | Norm) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.by_head, self.whole, self.hidden = by_head, whole, hidden
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.up, self.down = nn.Linear(DIM, 32), nn.Linear(32, DIM)
        for linear in (self.qkv, self.up):
            nn.init.normal_(linear.bias, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.whole is not None:
            q, k = self.whole(q), self.whole(k)
        q, k, v = (t.reshape(x.shape[0], -1, HEADS, WIDTH).transpose(1, 2) for t in (q, k, v))
        if self.by_head is not None:
            q, k = self.by_head(q), self.by_head(k)
        p = (q @ k.transpose(-2, -1)).softmax(-1)
        x = x + self.proj((p @ v).transpose(1, 2).reshape(x.shape))
        out: Tensor = x + self.down(self.hidden(F.gelu(self.up(x))))
        return out


def cosine(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{f"{name}, each head": lambda make=make: Normed(make(WIDTH), None, make(32)) for name, make in NORMS.items()},
    **{f"{name}, all heads": lambda make=make: Normed(None, make(DIM), make(32)) for name, make in NORMS.items()},
    "cosine": lambda: Normed(cosine, None, response),
    "without a scale": lambda: Normed(cosine, None, nn.LayerNorm(32, eps=0.1, elementwise_affine=False)),
}
X = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_it_is_cut_and_proven(name: str, tmp_path: Path) -> None:
    model = MODELS[name]().eval()
    with quiet():
        found = api.inspect(model, example_inputs=(X,))
        torch.onnx.export(model, (X,), tmp_path / "m.onnx", dynamo=True, opset_version=20, input_names=["x"])
        assert max(check_module(model, (X,), seed=seed) for seed in (0, 1)) <= 1e-5
        ratios = {"attention": {"qk": 0.5}, "ffn": 0.5, "round_to": 1}
        report = toastc.prune(tmp_path / "m.onnx", ratios, recipe="magnitude", output=tmp_path / "s.onnx").report
    assert {c["name"]: c["prunable"] for s in found["sites"] for c in s["couplings"]} == dict.fromkeys(
        ("qk", "vo", "hidden"), True
    )
    assert report.verified is not None and report.verified["ok"] and report.verified["error"] <= 1e-5
    assert report.after.macs < report.before.macs


def test_whole_heads_go_with_what_is_summed_up_of_each() -> None:
    model = Normed(cosine, None, response).eval()
    with quiet():
        result = toastc.prune(model, {"attention": {"heads": 0.5}}, recipe="magnitude", example_inputs=(X,))
    assert result.plan.choices["attn.heads"].index.shape == (1, 1)
    assert result.report.verified is not None and result.report.verified["ok"]


def test_half_floats_are_summed_up_in_float32() -> None:
    """300 squared is more than float16 holds."""
    model = Normed(whole(WIDTH), None, whole(32)).eval()
    with torch.no_grad(), quiet():
        model.up.weight.mul_(1e3)
        model.hidden.weight.mul_(1e-2)
        dense, x = model.to(torch.float16), X.half()
        result = toastc.prune(dense, {"ffn": 0.9, "round_to": 1}, recipe="magnitude", example_inputs=(x,))
        assert result.model(x).isfinite().all()
    assert result.report.verified is not None and result.report.verified["ok"]


def test_what_is_normed_is_cut_again(tmp_path: Path) -> None:
    model = Normed(None, nn.RMSNorm(DIM), whole(32)).eval()
    with quiet():
        torch.onnx.export(model, (X,), tmp_path / "0.onnx", dynamo=True, opset_version=20, input_names=["x"])
        for turn in (0, 1):
            ratios = {"attention": 0.75, "ffn": 0.75, "round_to": 1}
            report = toastc.prune(
                tmp_path / f"{turn}.onnx", ratios, recipe="magnitude", output=tmp_path / f"{turn + 1}.onnx"
            ).report
            assert report.verified is not None and report.verified["ok"]
    assert not any(n.op_type == "LayerNormalization" for n in onnx.load(tmp_path / "2.onnx").graph.node)
