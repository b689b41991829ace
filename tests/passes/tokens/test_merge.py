"""Token merging, against a ViT written out by hand in which tokens are averaged one pair at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from merging import HEIGHT, WIDTH, Dense, file, images, model, spell  # noqa: F401
from models import run_file
from torch import Tensor
from zoo_exports import quiet

import toastc
from toastc.plans.merges import Layout, Merge, parse_merges
from toastc.plans.plan import Plan, from_dict
from toastc.system.errors import ToastcError

torch.set_num_threads(1)
Spec = tuple[str, ...]


# ---- the same, by hand ---------------------------------------------------------------------------------------


def by_hand(model: Any, x: Tensor, spec: Spec, rule: str = "mean", proportional: bool = True) -> Tensor:  # noqa: F811
    aside = model.num_prefix_tokens
    y = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    height, width, size = HEIGHT, WIDTH, torch.ones(y.shape[1])
    for number, block in enumerate(model.blocks):
        for way in [word[0] for word in spec if int(word[1:]) == number]:
            grid, sizes = y[:, aside:].reshape(len(x), height, width, -1), size[aside:].reshape(height, width)
            if way == "v":
                grid, sizes = grid.transpose(1, 2), sizes.T
            grid, sizes = halved(grid, sizes, rule)
            if way == "v":
                grid, sizes = grid.transpose(1, 2), sizes.T
            height, width = sizes.shape
            y = torch.cat([y[:, :aside], grid.reshape(len(x), height * width, -1)], dim=1)
            size = torch.cat([size[:aside], sizes.reshape(-1)])
        attn, z = block.attn, block.norm1(y)
        q, k, v = attn.qkv(z).reshape(*z.shape[:2], 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        logits = attn.scale * q @ k.transpose(-2, -1)
        if proportional and len(size) < y.shape[1] + 1:
            logits = logits + size.log()
        y = y + attn.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(z.shape))
        y = y + block.mlp(block.norm2(y))
    return y


def halved(grid: Tensor, sizes: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Columns two by two; a last odd one as it is."""
    columns, counts = [], []
    for j in range(0, grid.shape[2], 2):
        if j + 1 == grid.shape[2]:
            columns.append(grid[:, :, j])
            counts.append(sizes[:, j])
            continue
        both = sizes[:, j] + sizes[:, j + 1]
        share = torch.full_like(both, 0.5) if rule == "mean" else sizes[:, j] / both
        columns.append(grid[:, :, j] * share[:, None] + grid[:, :, j + 1] * (1 - share)[:, None])
        counts.append(both)
    return torch.stack(columns, dim=2), torch.stack(counts, dim=1)


SPECS: list[Spec] = [("h1",), ("v2",), ("h1", "v3"), ("h1", "h2", "h3")]


CASES = [*zip(SPECS, ("mean", "weighted") * 2, strict=True), (SPECS[-1], "mean")]


def asked(spec: Spec, rule: str) -> list[dict[str, str]]:
    return [{"before": f"blocks.{w[1:]}", "merge": {"h": "horizontal", "v": "vertical"}[w[0]], "rule": rule} for w in spec]


@pytest.mark.parametrize(("spec", "rule"), CASES, ids=str)
def test_files_merge_as_by_hand(model: Any, file: Path, tmp_path: Path, spec: Spec, rule: str) -> None:  # noqa: F811
    merges = asked(spec, rule)
    made = toastc.prune(file, {"tokens": merges}, output=tmp_path / "small.onnx")
    assert made.report.verified is not None
    assert made.report.verified["ok"]
    x = images(3, seed=1)
    with torch.no_grad():
        expected, dense = model.forward_head(model.norm(by_hand(model, x, spec, rule))), model(x)
    scale = expected.abs().max()
    assert (expected - dense).abs().max() > 0.01 * scale, "merging changed nothing"
    assert np.abs(run_file(tmp_path / "small.onnx", x) - expected.numpy()).max() < 1e-4 * scale
    assert made.report.before.macs > made.report.after.macs == toastc.inspect(tmp_path / "small.onnx")["macs"]


@pytest.mark.parametrize(("spec", "rule"), CASES, ids=str)
def test_modules_merge_as_by_hand(model: Any, spec: Spec, rule: str) -> None:  # noqa: F811
    x = images(3, seed=1)
    spell(model, fused=rule == "mean")
    with torch.no_grad():
        expected = model.forward_head(model.norm(by_hand(model, x, spec, rule)))
        small = toastc.prune(model, {"tokens": asked(spec, rule)}, example_inputs=(images(2),))
        got = small.model(x)
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
    assert small.report.before.macs > small.report.after.macs == toastc.inspect(small.model, example_inputs=(images(2),))["macs"]


def test_attention_that_does_not_count_sizes(model: Any, file: Path, tmp_path: Path) -> None:  # noqa: F811
    merges = [{"before": "1", "merge": "horizontal", "proportional": False}]
    toastc.prune(file, {"tokens": merges}, output=tmp_path / "small.onnx")
    x = images(2, seed=2)
    with torch.no_grad():
        expected = model.forward_head(model.norm(by_hand(model, x, ("h1",), proportional=False)))
    assert np.abs(run_file(tmp_path / "small.onnx", x) - expected.numpy()).max() < 1e-4 * expected.abs().max()


def test_with_channels_in_one_plan_one_file_one_proof(model: Any, file: Path, tmp_path: Path) -> None:  # noqa: F811
    ratios = {"attention": 0.5, "ffn": 0.5, "round_to": 4, "tokens": [{"before": "blocks.1", "merge": "horizontal"}]}
    made = toastc.prune(file, ratios, recipe="magnitude", output=tmp_path / "small.onnx", plan_out=tmp_path / "p.safetensors")
    assert made.report.verified is not None
    assert made.report.verified["ok"]
    again = Plan.load(tmp_path / "p.safetensors")
    assert again.to_dict() == made.plan.to_dict() == from_dict(made.plan.to_dict()).to_dict()
    toastc.prune(file, plan=again, output=tmp_path / "again.onnx")
    x = images(3, seed=3)
    assert np.array_equal(run_file(tmp_path / "again.onnx", x), run_file(tmp_path / "small.onnx", x))
    assert toastc.verify(file, tmp_path / "small.onnx")["ok"]
    module = toastc.prune(model, ratios, recipe="magnitude", example_inputs=(images(2),)).model
    with torch.no_grad():
        assert np.abs(module(x).numpy() - run_file(tmp_path / "small.onnx", x)).max() < 1e-4


def test_a_budget_is_of_the_dense_model(file: Path, tmp_path: Path) -> None:  # noqa: F811
    data = images(16).numpy()
    for keep in (0.5, 0.9):
        made = toastc.prune(file, target=f"macs={keep}", tokens="h1", data=data, output=tmp_path / "small.onnx")
        assert made.report.after.macs <= keep * made.report.before.macs
        assert toastc.inspect(tmp_path / "small.onnx")["macs"] == made.report.after.macs
        assert bool(made.plan.choices) == (keep == 0.5), "at 0.9 the tokens alone are enough"


def test_compiled_for_any_batch(model: Any) -> None:  # noqa: F811
    torch._dynamo.reset()
    spell(model, True)
    ratios = {"attention": 0.25, "tokens": [{"before": "1", "merge": "horizontal"}, {"before": "2", "merge": "vertical"}]}
    options = {"ratios": ratios, "recipe": "magnitude", "then": "eager"}
    compiled = torch.compile(model, backend=toastc.backend, options=options, dynamic=True)
    small = toastc.prune(model, ratios, recipe="magnitude", example_inputs=(images(2),)).model
    with torch.no_grad():
        for count in (2, 5):
            x = images(count, seed=count)
            assert (compiled(x) - small(x)).abs().max() < 1e-4 * small(x).abs().max()


# ---- whole maps ----------------------------------------------------------------------------------------------


def test_dense_heads_and_sequences_get_every_patch_back(model: Any, tmp_path: Path) -> None:  # noqa: F811
    dense = Dense(model).eval()
    with quiet():
        torch.onnx.export(
            dense, (images(2),), tmp_path / "dense.onnx", dynamo=False, opset_version=17, verbose=False, input_names=["image"],
            dynamic_axes={"image": {0: "batch"}},
        )  # fmt: skip
    toastc.prune(tmp_path / "dense.onnx", tokens="h1,v2", output=tmp_path / "small.onnx")
    x = images(2, seed=4)
    with torch.no_grad():
        merged = model.norm(by_hand(model, x, ("h1", "v2")))
        aside = model.num_prefix_tokens
        grid = merged[:, aside:].reshape(2, (HEIGHT + 1) // 2, (WIDTH + 1) // 2, 48)
        grid = grid.repeat_interleave(2, dim=1)[:, :HEIGHT].repeat_interleave(2, dim=2)[:, :, :WIDTH]
        whole = torch.cat([merged[:, :aside], grid.reshape(2, HEIGHT * WIDTH, 48)], dim=1)
        expected = [dense.head(grid.permute(0, 3, 1, 2)), whole]
        module = toastc.prune(dense, tokens="h1,v2", example_inputs=(images(2),)).model(x)
    got = onnxruntime.InferenceSession(str(tmp_path / "small.onnx")).run(None, {"image": x.numpy()})
    before = [(o.name, o.type) for o in onnxruntime.InferenceSession(str(tmp_path / "dense.onnx")).get_outputs()]
    assert before == [(o.name, o.type) for o in onnxruntime.InferenceSession(str(tmp_path / "small.onnx")).get_outputs()]
    for a, b, c in zip(expected, got, module, strict=True):
        assert a.shape == b.shape
        assert np.abs(b - a.numpy()).max() < 1e-4 * a.abs().max()
        assert (c - a).abs().max() < 1e-4 * a.abs().max()


# ---- the grid, as data ---------------------------------------------------------------------------------------


def test_layouts_keep_every_patch_once() -> None:
    layout = Layout.whole(3, 5, 9)
    for merge in ("horizontal", "vertical", "horizontal"):
        layout, pairs = layout.merged(Merge("x", merge, "weighted"))
        assert layout.sizes.sum() == 3 + 45
        assert len(pairs.left) == layout.count == 3 + layout.height * layout.width
        assert np.array_equal(np.bincount(layout.of_patch), layout.sizes.astype(int))
        assert np.array_equal(layout.of_patch[layout.first], np.arange(layout.count))
    assert (layout.height, layout.width) == (3, 3)


def test_the_command_merges(file: Path, tmp_path: Path, here: Any) -> None:  # noqa: F811
    done = here(file, "-o", tmp_path / "a.onnx", "--tokens", "h1,v2", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verified"]["ok"]
    assert any("of the MACs" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("d4", "h4"),
        ("h9", "there are 4"),
        ("h1,v1", "same block"),
        ([{"before": "blocks.1"}], "before, merge"),
        ([{"before": "blocks.1", "merge": "sideways"}], "horizontal"),
        ([{"before": "nowhere", "merge": "vertical"}], "nowhere"),
    ],
)
def test_what_can_not_be_merged_is_said(file: Path, tokens: Any, message: str) -> None:  # noqa: F811
    with pytest.raises(ToastcError, match=message):
        toastc.prune(
            file, {"tokens": tokens} if isinstance(tokens, list) else None, tokens=None if isinstance(tokens, list) else tokens
        )
    assert parse_merges("h4,v8") == (Merge("4", "horizontal"), Merge("8", "vertical"))


def test_windows_and_position_tables_are_refused_with_their_reason() -> None:
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, depths=(2, 2), embed_dim=16, num_heads=(2, 4), window_size=7
    ).eval()
    with pytest.raises(ToastcError, match=r"tokens: .*(stream|grid)"):
        toastc.prune(swin, tokens="h1", example_inputs=(torch.randn(2, 3, 56, 56),))
    beit = timm.create_model("beit_base_patch16_224", img_size=32, patch_size=8, depth=3, embed_dim=48, num_heads=3).eval()
    with pytest.raises(ToastcError, match="number for each token"):
        toastc.prune(beit, tokens="h1", example_inputs=(torch.randn(2, 3, 32, 32),))
