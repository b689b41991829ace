"""What is said beside a result: notes, reasons why a plan does not fit, figures that are missing."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from handwritten import HEADS, attention, saved
from rich.console import Console
from torch import Tensor, nn
from zoo_exports import quiet

import toastc
from toastc.cli.terminal import print_bench
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.passes import match
from toastc.plans.choices import Basis, Keep, Select
from toastc.system.errors import ToastcError
from toastc.timing.files import compared, finished
from toastc.timing.kernels import Attention, kernel

HALF = {"attention": 0.5, "ffn": 0.5, "round_to": 1}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((8, 3, models.IMAGE, models.IMAGE)).astype(np.float32)


# ---- notes ---------------------------------------------------------------------------------------------------


def test_channels_that_can_not_be_shared(tmp_path: Path) -> None:
    """Queries of four channels a head, values of eight."""
    wide = {"wv": (8, 16), "wo": (16, 8), "pairs": np.array([0, 0, 2, 8]), "join": np.array([0, 0, 16])}
    heads = HEADS.replace("v1 = Reshape(v0, apart)", "v1 = Reshape(v0, pairs)")
    model = attention("s = MatMul(q, k)  p = Softmax(s)  m = MatMul(p, v)", wide, heads=heads)
    made = toastc.prune(saved(model, tmp_path), HALF, passes="match-sites,score-weights,share-scores,plan-ratios")
    assert "blocks.0.attn: queries and values have different widths; each keeps its own channels" in made.report.notes


def test_no_merge_is_better_than_any(tiny: Path, images: np.ndarray) -> None:
    made = toastc.prune(tiny, target="macs=0.95", allow="channels,tokens", data=images)
    assert [note for note in made.report.notes if note.startswith("tokens: no merge; expected error")], made.report.notes


def test_merges_that_no_block_takes(tmp_path: Path) -> None:
    """Tokens of words lie on no grid."""
    attended = attention("s = MatMul(q, k)  p = Softmax(s)  m = MatMul(p, v)", inputs="float[b, 3, 8] x")
    data = np.random.default_rng(0).standard_normal((8, 3, 8)).astype(np.float32)
    made = toastc.prune(saved(attended, tmp_path), target="macs=0.9", allow="channels,tokens", data=data)
    assert [note for note in made.report.notes if note.startswith("no tokens are merged: ")], made.report.notes


def test_too_few_inputs_for_a_batch_that_is_fixed(tmp_path: Path) -> None:
    model = attention("s = MatMul(q, k)  p = Softmax(s)  m = MatMul(p, v)", inputs="float[4, 3, 8] x", outputs="float[4, 3, 8] y")
    with pytest.raises(ToastcError, match="holds no inputs, or fewer than the 4 that the model takes at a time"):
        toastc.measure(saved(model, tmp_path), np.zeros((3, 3, 8), np.float32))


class Learnt(nn.Module):
    """Attention whose queries and keys are parameters: what is attended to never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Parameter(torch.randn(1, 2, 5, 4)), nn.Parameter(torch.randn(1, 2, 5, 4))
        self.v, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        v = self.v(x).unflatten(2, (2, 4)).transpose(1, 2)
        m = nn.functional.scaled_dot_product_attention(self.q, self.k, v)
        return x + self.out(m.transpose(1, 2).flatten(2))


def test_compactors_stand_behind_linears() -> None:
    with quiet():
        control = toastc.compact(Learnt().eval(), target="macs=0.9", round_to=1, example_inputs=(torch.randn(2, 5, 8),))[2]
    assert [why for why in control.left_out.values() if why == "no linear makes its channels"], control.left_out


# ---- plans of other models -----------------------------------------------------------------------------------


def test_choices_say_why_they_do_not_fit(tiny: Path) -> None:
    sites = {s.name: s for s in match.match(OnnxGraph(load_model(tiny)))[1]}
    qk, vo = sites["blocks.0.attn"].couplings
    hidden = sites["blocks.0.mlp"].couplings[0]
    groups, width = vo.groups, vo.width
    all_of_them, some = np.tile(np.arange(width), (groups, 1)), np.array([0], np.int32)
    said = {
        f"its basis is for ({groups}, {width - 1}) channels, the model has {groups} x {width}":
            (Basis(np.ones((groups, 1, width - 1)), np.ones((groups, width - 1, 1))), vo),
        f"it selects among {width} channels, the model has {hidden.groups} x {hidden.width}":
            (Select(1, width, "image", some), hidden),
        "no linear consumes its channels": (Select(1, width, "image", some), replace(qk, groups=1)),
        "it folds its groups together, and no linear consumes them": (Keep(all_of_them, np.eye(groups * width)), qk),
        "it shifts channels that are not there, or that no linear consumes":
            (Keep(all_of_them, shift=np.zeros((groups, width))), qk),
        f"it folds {width} channels, the model has {groups * width}": (Keep(all_of_them, np.eye(width)), vo),
    }  # fmt: skip
    assert {choice.fits(coupling) for choice, coupling in said.values()} == set(said)
    assert Keep(all_of_them, np.eye(groups * width), np.zeros((groups, width))).fits(vo) == ""


# ---- figures and words -----------------------------------------------------------------------------------------------


def test_flash_ends_at_256_channels() -> None:
    wide = Attention("a", 1, 300, 300, 264, 264, False, 1, 1)
    assert kernel(wide, "torch fp16") == ("memory-efficient", "d_qk 264 is over 256")
    assert kernel(replace(wide, d_qk=256, d_v=256), "torch fp16") == ("flash", "")


def test_files_whose_macs_are_not_known_are_timed_all_the_same() -> None:
    rows = [compared([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]], 1) | {"provider": "cpu"}]
    console = Console(record=True, width=200, file=StringIO())
    print_bench(finished("dense", "pruned", (None, 5), rows, []) | {"threads": 0}, console)
    said = console.export_text()
    assert "2.00 (2.00-2.00)" in said and "the MACs are not known; cpu, threads as the runtime likes" in said
