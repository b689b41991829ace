"""Both the batch and the number of tokens are free, and hidden channels pass shapes made of them on their way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from zoo_exports import quiet

import toastc
from toastc.system.errors import CannotShrink, ToastcError

HALF = {"ffn": 0.5, "round_to": 1}
WAYS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "rows": lambda h, b, n: h.reshape(b * n, 128).sin().reshape(b, n, 128),
    "unflatten": lambda h, b, n: h.flatten(0, 1).sin().unflatten(0, (b, n)),
    "expand_as": lambda h, b, n: h + h[:, :1].expand_as(h),
    "turned round": lambda h, b, n: h.reshape(n, b, 128).sin().reshape(b, n, 128),
    "channels and images on one axis": lambda h, b, n: (
        h.transpose(0, 1).reshape(n, b * 128).sin().reshape(n, b, 128).transpose(0, 1)
    ),
    "that and turned round": lambda h, b, n: h.reshape(n, b * 128).sin().reshape(b, n, 128),
}


class Ffn(nn.Module):
    """A product stands between the linear and the shapes, which are not written anew then but get new sizes."""

    def __init__(self, way: Callable[[Tensor, int, int], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.norm = way, nn.LayerNorm(32)
        self.up, self.gate, self.down = nn.Linear(32, 128), nn.Linear(32, 128), nn.Linear(128, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(self.way(self.up(y).relu() * self.gate(y), x.shape[0], x.shape[1]))


class Attention(nn.Module):
    """With images and tokens on one axis for its linears; or with heads on that of images, where its values are bent."""

    def __init__(self, rows: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.norm = rows, nn.LayerNorm(32)
        self.q, self.k, self.v, self.proj = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.norm(x).reshape(b * n, 32) if self.rows else self.norm(x)
        q, k, v = (linear(y).reshape(b, n, 2, 16).transpose(1, 2) for linear in (self.q, self.k, self.v))
        if self.rows:
            q, k, v = (part.reshape(b * 2, n, 16) for part in (q, k, v))
        else:
            v = v.relu().reshape(b * 2, n * 16).sin().reshape(b, 2, n, 16)
        mixed = ((q @ k.transpose(-1, -2)) / 4).softmax(-1) @ v
        return x + self.proj(mixed.reshape(b, 2, n, 16).transpose(1, 2).reshape(b, n, 32))


@pytest.mark.parametrize(
    ("rows", "ratios", "why"),
    [
        (True, {"qk": 0.5}, "several of the axes it merges are known at run time only; export with one of them fixed"),
        (False, {"vo": 0.5, "heads": 0.5}, r"more than one size of its output .*is only known at run time"),
    ],
    ids=["rows", "bent"],
)
def test_sizes_of_which_too_many_are_free(rows: bool, ratios: dict[str, float], why: str, tmp_path: Path) -> None:
    model, x, auto = Attention(rows).eval(), torch.randn(3, 5, 32), torch.export.Dim.AUTO
    asked = {"attention": ratios, "round_to": 1}
    free, path = {"x": {0: "b", 1: "n"}}, tmp_path / "m.onnx"
    with quiet(), torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: auto, 1: auto},))
        torch.onnx.export(model, (x,), path, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes=free)
        fixed = torch.export.export(model, (x,), dynamic_shapes=({0: auto},))
        made = toastc.prune(fixed, asked, recipe="magnitude")
    assert made.report.verified is not None and made.report.verified["ok"]
    for source in (program, path):
        with pytest.raises(CannotShrink, match=why):
            toastc.prune(source, asked, recipe="magnitude")


@pytest.mark.parametrize("way", WAYS)
def test_modules_and_files_of_any_size(way: str, tmp_path: Path) -> None:
    model, x, auto = Ffn(WAYS[way]).eval(), torch.randn(2, 5, 32), torch.export.Dim.AUTO
    with quiet(), torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: auto, 1: auto},))
        module = toastc.prune(program, HALF, recipe="magnitude")
        torch.onnx.export(
            model,
            (x,),
            tmp_path / "m.onnx",
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            dynamic_axes={"x": {0: "b", 1: "n"}},
        )
        file = toastc.prune(tmp_path / "m.onnx", HALF, recipe="magnitude", output=tmp_path / "o.onnx")
        other = torch.randn(3, 7, 32)
        expected = module.model(other).numpy()
    for made in (module, file):
        assert made.report.after.macs == made.report.before.macs // 2
        assert made.report.verified is not None and made.report.verified["ok"]
    got = ort.InferenceSession(tmp_path / "o.onnx").run(None, {"x": other.numpy()})[0]
    assert abs(got - expected).max() < 1e-5 * abs(expected).max()


def test_a_file_that_says_of_a_fixed_size_that_it_is_free(tmp_path: Path) -> None:
    """Traced with two images, which stand in a reshape for good."""
    path = tmp_path / "m.onnx"
    with quiet():
        model = Ffn(lambda h, b, n: h.reshape(2 * 5, 128).sin().reshape(2, 5, 128)).eval()
        free = {"x": {0: "b"}}
        torch.onnx.export(model, (torch.randn(2, 5, 32),), path, dynamo=False, input_names=["x"], dynamic_axes=free)
    with pytest.raises(
        ToastcError, match=r"m\.onnx: ONNX Runtime can not run it .*; it was given x 3x5x32, which its inputs allow"
    ):
        toastc.prune(path, HALF, recipe="magnitude", output=tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()
