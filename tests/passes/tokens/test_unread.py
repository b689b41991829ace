"""Tokens nobody reads behind the last attention go, and no output changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from merging import Dense, file, images, model  # noqa: F401
from models import run_file
from zoo_exports import quiet
from zoo_models import FAMILIES

import toastc

torch.set_num_threads(1)


def test_the_last_block_works_for_the_class_token_alone(model: Any, file: Path, tmp_path: Path) -> None:  # noqa: F811
    x = images(3, seed=1)
    with torch.no_grad(), quiet():
        made = toastc.prune(file, tokens="unread", output=tmp_path / "small.onnx")
        small = toastc.prune(model, tokens="unread", example_inputs=(images(2),))
        expected = model(x)
        assert (small.model(x) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert np.abs(run_file(tmp_path / "small.onnx", x) - expected.numpy()).max() < 1e-5 * expected.abs().max()
    assert made.report.verified is not None and made.report.verified["ok"]
    before, after = made.report.before.macs, made.report.after.macs
    tokens, width = 45 + 3, 48  # all but one leave proj, the FFN, and the queries of both products
    assert before - after == (tokens - 1) * (width * width + 8 * width * width + 2 * tokens * width)
    assert after == small.report.after.macs == toastc.inspect(tmp_path / "small.onnx")["macs"]
    assert any("1 of 48 tokens" in note for note in made.report.notes)


def test_with_merges_and_channels_in_one_plan(file: Path, tmp_path: Path) -> None:  # noqa: F811
    for tokens in ("h1,unread", "unread,h1:2,t2:3"):
        whole = tokens.replace(",unread", "").replace("unread,", "")
        made = toastc.prune(file, target="macs=0.5", tokens=tokens, recipe="magnitude", output=tmp_path / "small.onnx")
        assert made.report.verified is not None and made.report.verified["ok"]
        again = toastc.prune(file, plan=made.plan, output=tmp_path / "again.onnx")
        assert again.report.after.macs == made.report.after.macs <= 0.5 * made.report.before.macs
        toastc.prune(file, tokens=whole, output=tmp_path / "whole.onnx", verify=False)
        toastc.prune(file, tokens=tokens, output=tmp_path / "cut.onnx", verify=False)
        x = images(3, seed=2)
        a, b = run_file(tmp_path / "whole.onnx", x), run_file(tmp_path / "cut.onnx", x)
        assert np.abs(a - b).max() < 1e-5 * np.abs(a).max()


@pytest.mark.parametrize("name", ["hf_vit_sdpa", "hf_dinov2", "hf_clip_vision", "tv_vit", "vit_22b", "eva02_tiny"])
def test_families_that_ask_a_class_token(name: str) -> None:
    family = FAMILIES[name]
    with quiet(), torch.no_grad():
        dense = family.small(0).eval()
        torch.manual_seed(1)
        args, others = (tuple(family.inputs(False, n).values()) for n in (2, 5))
        made = toastc.prune(dense, tokens="unread", example_inputs=args)
        leaves = torch.utils._pytree.tree_leaves
        pairs = list(zip(leaves(dense(*others)), leaves(made.model(*others)), strict=True))
    assert all((a - b).abs().max() < 1e-5 * a.abs().max() for a, b in pairs)
    told = " ".join(made.report.notes)
    assert ("tokens are read" in told) == (made.report.after.macs < made.report.before.macs)


def test_a_whole_sequence_stays(model: Any) -> None:  # noqa: F811
    """Where patches are pooled, or leave the model, all of them are read."""
    pooled = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3,
                               global_pool="avg").eval()  # fmt: skip
    for dense, args in ((pooled, (torch.randn(2, 3, 32, 32),)), (Dense(model).eval(), (images(2),))):
        with quiet():
            made = toastc.prune(dense, tokens="unread", example_inputs=args)
        assert made.report.after.macs == made.report.before.macs


def test_compiled_for_any_batch(model: Any) -> None:  # noqa: F811
    torch._dynamo.reset()
    compiled = torch.compile(
        model, backend=toastc.backend, options={"ratios": {"tokens": [{"merge": "unread"}]}, "then": "eager"}, dynamic=True
    )
    with torch.no_grad(), quiet():
        for count in (2, 5):
            x = images(count, seed=count)
            assert (compiled(x) - model(x)).abs().max() < 1e-5 * model(x).abs().max()
