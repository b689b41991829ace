"""What is refused deep inside, reached from outside: by models, plans and options that a user may well have."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
import transformers
from handwritten import saved, written
from maps import Maps
from torch import Tensor, nn
from twisted import CHANNELS, Block, Vit, attended, with_mask
from zoo_exports import quiet

import toastc
from toastc.system.errors import NothingToPrune, ToastcError

HALF = {"attention": 0.5, "ffn": 0.5, "round_to": 1}
IMAGE = torch.randn(2, 3, 16, 16)
PLAIN = "h = MatMul(x, w1)  g = Relu(h)  y = MatMul(g, w2)"
FFN = {"w1": (8, 16), "w2": (16, 8)}
torch.set_num_threads(1)


# ---- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "options", "says"),
    [
        (
            "n = BatchNormalization<training_mode=1>(x, one, one, one, one)  " + PLAIN.replace("(x,", "(n,"),
            {"ratios": HALF}, r"is a training graph \(BatchNormalization\)",
        ),
        (
            PLAIN.replace("y = ", "v = ") + "  y = If (yes) <then_branch = a () => (float[b, 3, 8] t) { t = Relu(v) }, "
            "else_branch = c () => (float[b, 3, 8] f) { f = Abs(v) }>",
            {"dtype": "fp16"}, "the model has branches or loops; fp16 is for models without",
        ),
    ],
    ids=["training", "branches"],
)  # fmt: skip
def test_files(nodes: str, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    given = "float[b, 3, 8] x" + (", bool yes" if "yes" in nodes else "")
    model = written(nodes, {**FFN, "one": np.ones(3, np.float32)}, given)
    with pytest.raises(ToastcError, match=says):
        toastc.prune(saved(model, tmp_path), recipe="magnitude", output=tmp_path / "o.onnx", **options)
    assert not (tmp_path / "o.onnx").exists()


class Tokens(nn.Module):
    """Two blocks over tokens as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_tokens_whose_number_is_free(tmp_path: Path) -> None:
    path, free = tmp_path / "tokens.onnx", {0: torch.export.Dim("b", max=99), 1: torch.export.Dim("n", max=99)}
    with quiet():
        torch.onnx.export(
            Tokens().eval(), (torch.randn(2, 9, CHANNELS),), path, dynamo=True, opset_version=18, verbose=False,
            external_data=False, dynamic_shapes=(free,),
        )  # fmt: skip
    with pytest.raises(ToastcError, match="how many there are is only known at run time"):
        toastc.prune(path, tokens="h1")


ONE = torch.rand(2, 1, 1) > 2
MERGED: list[tuple[Callable[..., Any], str, str, int]] = [
    (lambda vit, x, seen: (x[:, 0], x.transpose(1, 2)), "t1:3", "tokens merged at run time, on another axis than its second", 18),
    (attended(with_mask(ONE)), "h1", "a mask of booleans, to which sizes can not be added", 23),
    (lambda vit, x, seen: vit.head(x[:, 0]), "h1,h2,h0", "nothing left to merge", 18),
]


@pytest.mark.parametrize(("twist", "tokens", "says", "opset"), MERGED)
def test_merges_of_files(twist: Any, tokens: str, says: str, opset: int, tmp_path: Path) -> None:
    """The same words as for a module (test_token_refusals)."""
    path = tmp_path / "vit.onnx"
    with quiet():
        torch.onnx.export(Vit(twist).eval(), (IMAGE,), path, dynamo=True, opset_version=opset, verbose=False, external_data=False)
    with pytest.raises(ToastcError, match=says):
        toastc.prune(path, tokens=tokens)


# ---- scores and plans ----------------------------------------------------------------------------------------


def test_scores_of_tokens_that_are_not_there() -> None:
    data, given = [np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)], (IMAGE,)
    with quiet(), pytest.raises(ToastcError, match="its tokens and images can not be told apart"):
        toastc.prune(Maps(flat=True).eval(), HALF, recipe="toast", data=data, example_inputs=given)
    passes = "match-sites,score-tokens{guide=yes},plan-ratios"
    with quiet(), pytest.raises(ToastcError, match="guide=yes, but no class token was found"):
        toastc.prune(Maps().eval(), HALF, passes=passes, data=data, example_inputs=given)


def test_merges_are_tried_on_data(deit: Path) -> None:
    data = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    moments = toastc.measure(deit, data, inputs=False)
    with pytest.raises(ToastcError, match="merges are tried on calibration data; give data"):
        toastc.prune(deit, target="macs=0.6", allow="channels,tokens", moments=moments)


# ---- compactors ----------------------------------------------------------------------------------------------


def small_vit(width: int = 32) -> nn.Module:
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": width, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", **sizes).eval()


def test_compactors_say_what_is_wrong() -> None:
    given: dict[str, Any] = {"target": "macs=0.6", "example_inputs": (IMAGE,)}
    with pytest.raises(ToastcError, match="every, ramp and round_to are at least 1, warmup at least 0"):
        toastc.compact(small_vit(), every=0, **given)
    control = toastc.compact(small_vit(), **given)[2]
    wider = toastc.compact(small_vit(48), **given)[2]
    with pytest.raises(ToastcError, match=r"the saved masks are of another model: alive\."):
        control.load_state_dict(wider.state_dict())
    control.finish()
    with pytest.raises(ToastcError, match="compact: is finished already"):
        control.finish()


# ---- models by name ------------------------------------------------------------------------------------------


def test_a_model_of_words_by_name(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(tmp_path / "bert")
    with quiet(), pytest.raises(ToastcError, match="takes input_ids; models of images alone are exported, give an ONNX file"):
        toastc.export(f"hf:{tmp_path / 'bert'}", tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ToastcError, match="timm:vit_tiny_patch16_224: needs a package that is not here"):
        toastc.export("timm:vit_tiny_patch16_224", tmp_path / "o.onnx", weights="random")


def test_a_file_without_anything_to_prune_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(NothingToPrune):
        toastc.prune(saved(written("y = Relu(x)", {}), tmp_path), HALF, recipe="magnitude", output=tmp_path / "o.onnx")
    assert onnx.load(tmp_path / "model.onnx").graph.node[0].op_type == "Relu" and not (tmp_path / "o.onnx").exists()
