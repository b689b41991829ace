"""What detectors and segmenters brought up: rows of linears, masks added in a product, norms by groups, writing in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, checker, helper, numpy_helper, save
from oracle import check_module, check_onnx
from small import Masked
from torch import Tensor, nn
from zoo_exports import quiet

import toastc
from toastc import api
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.passes.match import match

torch.set_num_threads(1)
RATIOS = {"attention": 0.5, "ffn": 0.5, "round_to": 4}


class Row(nn.Module):
    """Three linears in a row behind a norm, from 16 channels to `out`."""

    def __init__(self, out: int = 16) -> None:
        super().__init__()
        self.norm, self.layers = nn.LayerNorm(16), nn.ModuleList([nn.Linear(16, 24), nn.Linear(24, 32), nn.Linear(32, out)])

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        made: Tensor = last(second(first(self.norm(x)).relu()).relu())
        return made


def test_both_hidden_widths_of_three_linears_shrink() -> None:
    with quiet():
        args = (torch.randn(2, 5, 16),)
        result = toastc.prune(Row().eval(), RATIOS, recipe="magnitude", example_inputs=args)
        errors = [check_module(Row().eval(), args, basis=basis, seed=1) for basis in (False, True)]
    assert {n: c.width for n, c in result.plan.choices.items()} == {"layers.hidden": 12, "layers#2.hidden": 16}
    assert result.report.verified is not None and result.report.verified["ok"] and max(errors) <= 1e-4
    with quiet():
        assert len(api.inspect(Row(4).eval(), example_inputs=args)["sites"]) == 2, "a head's widths are widths like others"


def test_a_mask_inside_the_product_binds_whole_heads_only() -> None:
    args = (torch.randn(2, 5, 32), torch.randn(4, 5, 5))
    with quiet():
        found = api.inspect(Masked().eval(), example_inputs=args)
        result = toastc.prune(Masked().eval(), RATIOS, recipe="magnitude", example_inputs=args)
    assert [(c["name"], c["prunable"]) for s in found["sites"] for c in s["couplings"]] == [("qk", True), ("vo", True)]
    assert not [n for n in result.plan.choices if n.endswith(".heads")]
    assert result.report.verified is not None and result.report.verified["ok"]


def test_a_norm_by_groups_has_the_shape_of_its_input(tmp_path: Path) -> None:
    """onnx does not infer it; with a free batch nothing else says it."""
    rng = np.random.default_rng(0)
    weights = {"one": (8,), "nil": (8,), "up": (8, 16), "down": (16, 8)}
    nodes = [
        helper.make_node("GroupNormalization", ["x", "one", "nil"], ["g"], num_groups=2),
        helper.make_node("Transpose", ["g"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "up"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "down"], ["y"]),
    ]
    shapes: dict[str, list[str | int | None]] = {"x": ["n", 8, 5], "y": ["n", 5, 8]}
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    tensors = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    checker.check_model(model)
    save(model, tmp_path / "m.onnx")
    assert [s["kind"] for s in api.inspect(tmp_path / "m.onnx")["sites"]] == ["ffn"]
    check_onnx(tmp_path / "m.onnx", tmp_path)


class Writes(nn.Module):
    """An FFN whose input is written into a tensor, as detectors put images into a batch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.up, self.down, self.how = nn.Linear(16, 32), nn.Linear(32, 16), how

    def forward(self, x: Tensor) -> Tensor:
        batch = x.new_zeros(x.shape)
        if self.how == "copy":
            batch[:, :].copy_(x)
        elif self.how == "add":
            batch.add_(x)
        else:
            batch[:, :] = x
        made: Tensor = batch + self.down(self.up(batch).relu())
        return made


@pytest.mark.parametrize("how", ["copy", "add", "set"])
def test_what_is_written_in_place_stays_written(how: str) -> None:
    model, x = Writes(how).eval(), torch.randn(2, 5, 16)
    options: dict[str, Any] = {"ratios": RATIOS, "recipe": "magnitude", "then": "eager"}
    torch._dynamo.reset()
    with quiet():
        expected = toastc.prune(model, RATIOS, recipe="magnitude", example_inputs=(x,)).model(x)
        got = torch.compile(model, backend=toastc.backend, options=options)(x)
    assert (got - expected).abs().max() <= 1e-5


class Expected(nn.Module):
    """An FFN, and the mean of a distribution by a weight of one axis, as D-FINE's boxes are found."""

    def __init__(self) -> None:
        super().__init__()
        self.ffn, self.places = Row(), nn.Parameter(torch.linspace(0, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.ffn(x).softmax(-1), self.places)


def test_a_linear_with_a_weight_of_one_axis() -> None:
    with quiet():
        assert check_module(Expected().eval(), (torch.randn(2, 5, 16),)) <= 1e-4


class Checked(nn.Module):
    """An FFN whose input is checked as it runs: a number is read from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.ffn = Row()

    def forward(self, x: Tensor) -> Tensor:
        torch._check(x.isfinite().all().item())
        return self.ffn(x)


def test_a_number_that_is_read_from_a_tensor() -> None:
    with quiet():
        made = toastc.prune(Checked().eval(), RATIOS, recipe="magnitude", example_inputs=(torch.randn(2, 5, 16),))
    assert made.report.verified is not None and made.report.verified["ok"]
    with pytest.raises(RuntimeError):
        made.model(torch.full((2, 5, 16), torch.nan))


class Joined(nn.Module):
    """An FFN whose hidden tensor is put together of no class tokens and all others, as rotary embeddings are in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(self.norm(x)).relu()
        return x + self.down(torch.cat([h[:, :0], 2 * h[:, 0:]], 1))


def test_a_join_with_nothing(tmp_path: Path) -> None:
    model, x = Joined().eval(), torch.randn(2, 5, 16)
    with quiet():
        made = toastc.prune(model, RATIOS, recipe="magnitude", example_inputs=(x,))
        torch.onnx.export(model, (x,), tmp_path / "dense.onnx", dynamo=False, opset_version=17, input_names=["x"])
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="toastc", options={"ratios": RATIOS, "recipe": "magnitude", "then": "eager"})
        assert torch.allclose(compiled(x), made.model(x), atol=1e-5)
    assert len(made.plan.choices) == 1
    assert made.report.verified is not None and made.report.verified["ok"]
    check_onnx(tmp_path / "dense.onnx", tmp_path)


class Pooled(nn.Module):
    """Queries, keys and values of two tokens each: the greater one of each channel, or their mean."""

    def __init__(self, how: str, keepdim: bool = False) -> None:
        super().__init__()
        self.how, self.keepdim = how, keepdim
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        def pooled(t: Tensor) -> Tensor:
            t = t.reshape(x.shape[0], 2, 2, -1, 8)  # images, heads, which of the two, tokens, channels
            return (t.amax(2, self.keepdim) if self.how == "max" else t.mean(2, self.keepdim)).reshape(x.shape[0], 2, -1, 8)

        parts = self.qkv(x).reshape(x.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        q, k, v = map(pooled, parts)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        made: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return made


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("how", ["max", "mean"])
def test_pooling_tokens_is_nothing_to_channels(how: str, keepdim: bool, tmp_path: Path) -> None:
    model, args = Pooled(how, keepdim).eval(), (torch.randn(2, 6, 16),)
    with quiet():
        (found,) = api.inspect(model, example_inputs=args)["sites"]
        torch.onnx.export(model, args, tmp_path / "m.onnx", dynamo=False, opset_version=17, input_names=["x"])
        errors = [check_module(model, args, basis=basis, seed=seed) for basis in (False, True) for seed in (0, 1)]
    assert all(c["prunable"] for c in found["couplings"]) and max(errors) <= 1e-4
    (site,) = match(OnnxGraph(load_model(tmp_path / "m.onnx")))[1]
    assert [c.rotatable for c in site.couplings] == [how == "mean"] * 2, "the greatest of sums is no sum of the greatest"
    for basis in (False, True):
        check_onnx(tmp_path / "m.onnx", tmp_path, basis=basis, seed=1)


class Stream(nn.Module):
    """FFNs along a stream that linears alone make, and that is pooled without a norm (LeViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.begin, self.head = nn.Linear(8, 16), nn.Linear(16, 10)
        self.up, self.down = (nn.ModuleList(nn.Linear(*size) for _ in range(2)) for size in ((16, 32), (32, 16)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.begin(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        made: Tensor = self.head(x.mean(1))
        return made


def test_a_stream_without_norms_is_no_hidden_width() -> None:
    args = (torch.randn(2, 6, 8),)
    with quiet():
        found = api.inspect(Stream().eval(), example_inputs=args)
        assert check_module(Stream().eval(), args, seed=1) <= 1e-4
    assert [s["hidden"] for s in found["sites"]] == [32, 32], found["rejects"]
