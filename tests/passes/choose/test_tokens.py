"""A budget shared between tokens and channels; and models whose tokens can not be merged, with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import ZooFile
from merging import file, images, model  # noqa: F401
from models import run_file
from torch import Tensor, nn
from zoo_exports import quiet
from zoo_models import FAMILIES

import toastc
from toastc.plans.merges import UNREAD
from toastc.system.errors import ToastcError

torch.set_num_threads(1)


def striped(count: int, seed: int = 0) -> Tensor:
    """Images whose patches come in equal pairs: the two columns of a pair show the same."""
    patches = torch.randn(count, 3, 4, 8, 4, 8, generator=torch.Generator().manual_seed(seed))
    return patches.repeat_interleave(2, dim=4).reshape(count, 3, 32, 64)


@pytest.fixture(scope="module")
def redundant() -> Any:
    """It does not know where its patches stand, so that equal ones stay equal."""
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=(32, 64), patch_size=8, depth=4, embed_dim=48, num_heads=3, num_classes=5
    )
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        vit.pos_embed.zero_()
    return vit.eval()


def test_tokens_that_are_twice_there_are_merged_first(redundant: Any) -> None:
    data = {"x": striped(48).numpy()}
    with quiet():
        made, channels = (
            toastc.prune(redundant, target="macs=0.6", data=data["x"], allow=allow, example_inputs=(striped(2),))
            for allow in ("channels,tokens", "channels")
        )
    assert made.plan.merges[0].merge == "horizontal" and made.plan.merges[-1] == UNREAD
    assert channels.plan.merges == ()
    for each in (made, channels):
        assert each.report.after.macs <= 0.6 * each.report.before.macs
        assert each.report.verified is not None and each.report.verified["ok"]
    x = striped(8, seed=1)
    with torch.no_grad():
        dense = redundant(x)
        errors = [float((each.model(x) - dense).norm() / dense.norm()) for each in (made, channels)]
    assert errors[0] < 0.5 * errors[1]
    assert any(note.startswith("tokens: h1") for note in made.report.notes)


def test_what_nobody_reads_goes_first_and_only_if_allowed(file: Path, tmp_path: Path) -> None:  # noqa: F811
    data = images(32).numpy()
    free = toastc.prune(file, target="macs=0.7", data=data, output=tmp_path / "a.onnx", ratios_out=tmp_path / "r.json")
    assert free.plan.merges == (UNREAD,)
    assert json.loads((tmp_path / "r.json").read_text())["tokens"] == [UNREAD.to_dict()]
    again = toastc.prune(file, tmp_path / "r.json", data=data, recipe="calibrated", output=tmp_path / "b.onnx")
    assert again.report.after.macs == free.report.after.macs
    x = images(3, seed=1)
    assert np.abs(run_file(tmp_path / "a.onnx", x) - run_file(tmp_path / "b.onnx", x)).max() < 1e-4
    for options in ({"allow": "channels"}, {"recipe": "magnitude"}):
        assert toastc.prune(file, target="macs=0.7", data=data, output=tmp_path / "c.onnx", **options).plan.merges == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow": "tokens", "target": 0.5}, "channels,tokens"),
        ({"allow": "channels,heads", "target": 0.5}, "channels,tokens"),
        ({"allow": "channels,tokens", "target": "params=0.5"}, "target in macs"),
        ({"allow": "channels,tokens", "target": 0.5, "recipe": "magnitude"}, "allocates widths"),
        ({"allow": "channels,tokens", "target": 0.5, "tokens": "h1"}, "not both"),
    ],
)
def test_what_can_not_be_allowed_is_said(file: Path, options: dict[str, Any], message: str) -> None:  # noqa: F811
    with pytest.raises(ToastcError, match=message):
        toastc.prune(file, data=images(8).numpy(), **options)


# ---- dense prediction --------------------------------------------------------------------------------------


REFUSED = {
    "hf_segformer": "grid was restored", "hf_detr": "grid was restored", "hf_upernet_swin": "grid was restored",
    "hf_mask2former_swin": "grid was restored", "hf_yolos": "behind the patches", "timm_swin_fpn": "no stream of tokens",
    "eva02_tiny": "a number for each token", "hf_bert": "grid is unknown", "xcit_tiny": "residual stream",
    "vit_22b": "grid was restored", "vit_relpos_small_rpn": "residual stream",
}  # fmt: skip
MERGED = ["timm_vit_boxes", "tv_vit", "hf_dinov2", "hf_vit_mae", "hf_vit_sdpa"]


def opened(name: str) -> tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]]:
    family = FAMILIES[name]
    torch.manual_seed(1)
    return family.small(0).eval(), *(tuple(family.inputs(False, n).values()) for n in (2, 3))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str) -> None:
    with quiet():
        dense, args, _ = opened(name)
        program = torch.export.export(dense, args)
        with pytest.raises(ToastcError, match=REFUSED[name]):
            toastc.prune(program, tokens="h1")
        with pytest.raises(ToastcError):
            toastc.prune(program, tokens="t:2")


@pytest.mark.parametrize(
    ("name", "variant"), [("hf_vit_eager", "ts17"), ("hf_dinov2", "dynamo18"), ("timm_vit_boxes", "dynamo20-dyn")]
)
def test_files_with_masks_that_forbid_nothing(name: str, variant: str, zoo_file: ZooFile) -> None:
    """Exporters write what transformers makes: zeros for every pair of tokens, computed or not."""
    for tokens in ("h1", "h1:1,t:1"):
        made = toastc.prune(zoo_file(name, variant), tokens=tokens)
        assert made.report.verified is not None and made.report.verified["ok"]
        assert made.report.after.macs < made.report.before.macs


@pytest.mark.parametrize("name", MERGED)
def test_merged_with_the_shapes_of_all_outputs(name: str) -> None:
    leaves = torch.utils._pytree.tree_leaves
    with quiet(), torch.no_grad():
        dense, args, others = opened(name)
        free = tuple({0: torch.export.Dim.AUTO} if a.ndim else None for a in args)
        program = torch.export.export(dense, args, dynamic_shapes=free)
        for tokens in ("h1", "t:2"):
            made = toastc.prune(program, tokens=tokens)
            assert made.report.verified is not None and made.report.verified["ok"]
            assert made.report.after.macs < made.report.before.macs
            assert [t.shape for t in leaves(made.model(*others))] == [t.shape for t in leaves(dense(*others))]
