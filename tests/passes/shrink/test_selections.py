"""Channels chosen at run time in other spellings than test_toast's: maps of four axes, whole attention nodes, old operator sets;
and plans of them that are replayed on models they do not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import ZooFile
from maps import CHANNELS, HEADS, Ffn, Maps
from models import run_file
from torch import Tensor, nn
from zoo_exports import quiet
from zoo_models import FAMILIES

import toastc
from toastc.plans.plan import Plan, Select
from toastc.system.errors import ToastcError

torch.set_num_threads(1)
RATIOS = {"ffn": {"hidden": 0.5}, "round_to": 1}


@pytest.mark.parametrize("variant", ["ts17-dyn", "ort-dyn", "dynamo23-dyn"])
def test_every_spelling_of_attention_guides_the_same(zoo_file: ZooFile, tmp_path: Path, variant: str) -> None:
    """The module's choices are those of the formula (test_toast); the class token's attention inside a node is computed anew."""
    family, passes = FAMILIES["deit_tiny"], "plan-selections{sample=0.3}"
    kinds = {node.op_type for node in onnx.load(zoo_file("deit_tiny", variant)).graph.node}
    assert {"ts17-dyn": "Softmax", "ort-dyn": "MultiHeadAttention", "dynamo23-dyn": "Attention"}[variant] in kinds
    with quiet(), torch.no_grad():
        model, inputs = family.small().eval(), tuple(family.inputs(False, 2).values())
        made = toastc.prune(model, RATIOS, passes=passes, example_inputs=inputs)
        assert all(choice.guided for choice in made.plan.choices.values() if isinstance(choice, Select))
        expected = made.model(*inputs)
        toastc.prune(zoo_file("deit_tiny", variant), RATIOS, passes=passes, output=tmp_path / "small.onnx")
        assert (expected - model(*inputs)).abs().max() > 0.01 * expected.abs().max()
    got = run_file(tmp_path / "small.onnx", inputs[0])
    assert np.abs(got - expected.numpy()).max() < 1e-4 * expected.abs().max()


@contextmanager
def selecting(model: nn.Module, plan: Plan) -> Iterator[nn.Module]:
    """What the formula says: the channels that are largest on the sampled tokens, image by image or over all of them."""
    hooks = []
    for name, choice in plan.choices.items():
        assert isinstance(choice, Select)

        def masked(module: Any, given: tuple[Tensor], choice: Select = choice) -> tuple[Tensor]:
            score = given[0].flatten(1, 2)[:, choice.tokens.tolist()].abs().mean(1)
            score = score.mean(0, keepdim=True).expand_as(score) if choice.per == "batch" else score
            mask = torch.zeros_like(score).scatter_(1, score.topk(choice.width).indices, 1.0)
            return (given[0] * mask[:, None, None],)

        hooks.append(model.get_submodule(name.rpartition(".")[0]).fc2.register_forward_pre_hook(masked))
    yield model
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("per", ["image", "batch"])
def test_maps_of_four_axes(tmp_path: Path, per: str) -> None:
    model, passes = Maps().eval(), f"plan-selections{{per={per},sample=0.3}}"
    given, other = torch.randn(2, 3, 16, 16), torch.randn(5, 3, 16, 16)
    with quiet(), torch.no_grad():
        torch.onnx.export(
            model, (given,), tmp_path / "dense.onnx", dynamo=True, opset_version=18, verbose=False, input_names=["image"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
        )  # fmt: skip
        made = toastc.prune(model, RATIOS, passes=passes, example_inputs=(given,))
        assert len(made.plan.choices) == 2
        toastc.prune(tmp_path / "dense.onnx", RATIOS, passes=passes, output=tmp_path / "small.onnx")
        with selecting(model, made.plan) as masked:
            expected = masked(other)
        assert (expected - model(other)).abs().max() > 0.01 * expected.abs().max()
        assert (made.model(other) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert np.abs(run_file(tmp_path / "small.onnx", other) - expected.numpy()).max() < 1e-4 * expected.abs().max()


# ---- plans that do not fit -----------------------------------------------------------------------------------


class Guided(nn.Module):
    """A class token, one attention, one FFN: the attention as it is mostly written, in products of all heads at once, or none."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.patches = how, nn.Conv2d(3, CHANNELS, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, CHANNELS))
        self.norm, self.ffn = nn.LayerNorm(CHANNELS), Ffn()
        self.q, self.k, self.v, self.proj = (nn.Linear(CHANNELS, CHANNELS) for _ in range(4))

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = (f(self.norm(x)).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.how == "heads beside images":
            q, k, v = (t.flatten(0, 1) for t in (q, k, v))
        y = (q @ k.transpose(-2, -1) * 0.35).softmax(-1) @ v
        y = y.unflatten(0, (-1, HEADS)) if self.how == "heads beside images" else y
        return x + self.proj(y.transpose(1, 2).flatten(2))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.ffn(x if self.how == "no attention" else self.attention(x))[:, 0]


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        (Maps(), Maps(flat=True), "the tokens of all images stand on one axis"),
        (Guided("plain"), Guided("no attention"), "no attention stands before it"),
        (Guided("plain"), Guided("heads beside images"), "does not keep images and heads apart"),
    ],
    ids=["one axis", "no attention", "heads beside images"],
)
@pytest.mark.parametrize("onnx_file", [False, True], ids=["module", "file"])
def test_a_plan_for_another_spelling(one: nn.Module, other: nn.Module, says: str, onnx_file: bool, tmp_path: Path) -> None:
    given, passes = torch.randn(2, 3, 16, 16), "plan-selections{sample=0.3}"
    one, other = one.eval(), other.eval()
    with quiet():
        plan = toastc.prune(one, RATIOS, passes=passes, example_inputs=(given,)).plan
        model: Any = other
        if onnx_file:
            model = tmp_path / "other.onnx"
            torch.onnx.export(other, (given,), model, dynamo=True, opset_version=18, verbose=False, external_data=False)
        with pytest.raises(ToastcError, match=says):
            toastc.prune(model, plan=plan, example_inputs=None if onnx_file else (given,))


def test_asked_for_anew_they_are_not_guided_or_refused() -> None:
    given, passes = (torch.randn(2, 3, 16, 16),), "plan-selections{sample=0.3}"
    with quiet():
        for how in ("no attention", "heads beside images"):
            made = toastc.prune(Guided(how).eval(), RATIOS, passes=passes, example_inputs=given)
            assert [choice.guided for choice in made.plan.choices.values() if isinstance(choice, Select)] == [False]
        with pytest.raises(ToastcError, match="its tokens and images can not be told apart"):
            toastc.prune(Maps(flat=True).eval(), RATIOS, passes=passes, example_inputs=given)
