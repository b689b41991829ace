"""A pruned module is still the module that was given: class, parts, names, hooks."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import timm
import torch
from conftest import RATIOS
from own_modules import EVERY, WRITTEN, dense, images, numbers, off, pruned
from torch import Tensor, nn

import toastc
from toastc.testing import assert_equivalent


@EVERY
def test_it_is_its_class_and_gives_what_the_graph_gives(name: str) -> None:
    model, result, graph = dense(name), pruned(name), pruned(name, as_graph=True)
    assert type(result.model) is type(model) and not isinstance(graph.model, type(model))
    assert result.report.verified["ok"] and not [n for n in result.report.notes if "graph" in n]
    assert {n for n, _ in result.model.named_parameters()} == {n for n, _ in model.named_parameters()}
    classes = [{n: type(m).__name__ for n, m in each.named_modules()} for each in (result.model, model)]
    assert classes[0] == classes[1]
    with torch.no_grad():
        assert off(graph.model(images(5)), result.model(images(5))) < 1e-5  # another batch than it was captured with


@EVERY
def test_its_linears_are_linears(name: str) -> None:
    model, small = dense(name), pruned(name).model
    attention, linears, up = WRITTEN[name]
    for n in range(2):
        for path in (*(f"{attention.format(n)}.{linear}" for linear in linears), up.format(n)):
            before, after = model.get_submodule(path), small.get_submodule(path)
            assert isinstance(after, nn.Linear) and after.weight.numel() < before.weight.numel(), path
            assert (after.out_features, after.in_features) == tuple(after.weight.shape)
        assert isinstance(small.get_submodule(attention.format(n)), type(model.get_submodule(attention.format(n))))


@EVERY
def test_hooks_fire_in_what_was_written_anew(name: str) -> None:
    small = pruned(name).model
    seen: list[tuple[int, ...]] = []
    attention, _, up = WRITTEN[name]
    for path in (attention.format(0), up.format(1)):
        small.get_submodule(path).register_forward_hook(lambda m, a, out: seen.append(tuple(numbers(out).shape)))
    small(images(3))
    assert len(seen) == 2 and seen[1][-1] == small.get_submodule(up.format(1)).out_features


@EVERY
def test_copies_and_pickles_are_the_same_and_small(name: str) -> None:
    small = pruned(name).model
    text = pickle.dumps(small)
    again, copied = pickle.loads(text), copy.deepcopy(small)
    with torch.no_grad():
        expected = small(images(3))
        assert off(expected, again(images(3))) == off(expected, copied(images(3))) == 0
    tensors = {id(t): t for t in (*small.parameters(), *small.buffers())}.values()
    assert len(text) < 1.1 * sum(t.numel() * t.element_size() for t in tensors) + 100_000  # of which classes and names are 60 k
    with torch.no_grad():
        next(copied.parameters()).add_(1)
        assert off(expected, small(images(3))) == 0


@EVERY
def test_it_can_be_pruned_again_and_trained(name: str) -> None:
    small = pruned(name).model
    twice = toastc.prune(small, RATIOS, recipe="magnitude", example_inputs=(images(),))
    assert type(twice.model) is type(small) and twice.report.after.macs < twice.report.before.macs
    out = numbers(twice.model.train()(images(2)))
    out.square().mean().backward()
    up = WRITTEN[name][2]
    assert twice.model.get_submodule(up.format(0)).weight.grad.abs().max() > 0
    half = pruned(name).model.bfloat16()
    with torch.no_grad():
        assert off(small.eval()(images(2)), half(images(2).bfloat16())) < 0.05


@EVERY
def test_it_compiles_whole_and_is_proven_once_more(name: str) -> None:
    model = dense(name)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    model.get_parameter(next(iter(weights))).requires_grad_(False)
    small = toastc.prune(model, RATIOS, recipe="magnitude", example_inputs=(images(),)).model
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())  # the model that was given is left alone
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    assert assert_equivalent(model, small, example_inputs=(images(),)) < 1e-4
    torch._dynamo.reset()
    with torch.no_grad():
        assert off(small(images(3)), torch.compile(small, backend="eager", fullgraph=True)(images(3))) < 1e-5
        small.get_submodule(WRITTEN[name][2].format(0)).weight.mul_(1.5)
    with pytest.raises(AssertionError, match="not equivalent"):
        assert_equivalent(model, small, example_inputs=(images(),))


@EVERY
def test_a_free_batch_goes_to_onnx(name: str, tmp_path: Path) -> None:
    small = pruned(name).model
    file = tmp_path / "small.onnx"
    torch.onnx.export(
        small, (images(),), file, dynamo=True, opset_version=20, verbose=False, input_names=["image"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    got = ort.InferenceSession(file).run(None, {"image": images(5).numpy()})
    with torch.no_grad():
        assert off(numbers(small(images(5))), torch.from_numpy(np.asarray(got[0]))) < 1e-4


def test_what_was_written_reads_like_code() -> None:
    small = pruned("timm_vit", {"attention": {"qk": 0.5, "vo": 0.25}}).model
    text = inspect.getsource(small.blocks[0].attn.forward)
    assert "qkv = self.qkv(x)" in text and "self.proj(" in text and "aten" not in text and len(text.splitlines()) < 40
    assert type(small.blocks[0].attn) is type(small.blocks[1].attn)  # one class where the code is the same


def test_other_sizes_of_image_than_it_was_captured_with() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, dynamic_img_size=True).eval()
    result = toastc.prune(model, RATIOS, recipe="magnitude", example_inputs=(images(),))
    wide = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(3))
    graph = toastc.prune(model, plan=result.plan, example_inputs=(wide,), as_graph=True).model
    with torch.no_grad():
        assert off(graph(wide), result.model(wide)) < 1e-5


def test_a_forward_that_was_patched_is_the_one_that_counts() -> None:
    model = dense("timm_vit")
    inner = model.blocks[0].attn.forward
    model.blocks[0].attn.forward = lambda x, **words: 2 * inner(x)
    small = toastc.prune(model, RATIOS, recipe="magnitude", example_inputs=(images(),)).model
    graph = toastc.prune(model, RATIOS, recipe="magnitude", example_inputs=(images(),), as_graph=True).model
    with torch.no_grad():
        assert off(graph(images(3)), small(images(3))) < 1e-5 < off(pruned("timm_vit").model(images(3)), small(images(3)))


class Counted(nn.Module):
    """An attention that is told how many images there are, and how many heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor, count: int, heads: int) -> Tensor:
        q, k, v = (t.reshape(count, -1, heads, 32 // heads).transpose(1, 2) for t in self.qkv(x).chunk(3, 2))
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, -1, 32))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Counted()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x, x.shape[0], heads=2)

    def more(self) -> None:
        """It has other methods: its own forward is not to be written."""


def test_numbers_that_follow_the_batch_are_not_fixed_and_others_are() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 32)
    model = Counting().eval()
    small, graph = (toastc.prune(model, 0.5, recipe="magnitude", example_inputs=(x,), as_graph=g).model for g in (False, True))
    with torch.no_grad():
        assert isinstance(small, Counting) and off(graph(x.repeat(3, 1, 1)), small(x.repeat(3, 1, 1))) < 1e-5
        with pytest.raises(ValueError, match="was made smaller for heads=2"):
            small.attn(x, 2, 4)


def test_tokens_left_out_are_a_graph_and_it_is_said() -> None:
    result = pruned("timm_vit", None, tokens="h1")
    assert isinstance(result.model, torch.fx.GraphModule)
    assert "the smaller model is a graph, not a VisionTransformer: tokens are merged between its modules" in result.report.notes
    whole = pruned("timm_vit", None, target="macs=0.7", recipe="magnitude")
    assert type(whole.model) is type(dense("timm_vit"))  # without being asked none are left out


class Functional(nn.Module):
    """All of it is in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(32, 96), nn.Linear(32, 32)])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (2, 16)).transpose(1, 2) for t in self.body[0](x).chunk(3, 2))
        made = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.body[1](made)


class MoreThanForward(Functional):
    def features(self, x: Tensor) -> Tensor:
        return self.body[0](x).chunk(3, 2)[0]


def test_a_model_whose_own_code_changes_is_a_graph_if_it_has_more_code() -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 5, 32),)
    plain, more = (
        toastc.prune(m().eval(), {"attention": 0.5}, recipe="magnitude", example_inputs=x) for m in (Functional, MoreThanForward)
    )
    assert isinstance(plain.model, Functional) and plain.model.body[1].in_features == 16
    assert isinstance(more.model, torch.fx.GraphModule)
    assert any("features would not know of them" in note for note in more.report.notes)


def test_a_model_that_can_not_be_copied_is_a_graph() -> None:
    model = dense("timm_vit")
    model.lock = threading.Lock()
    result = toastc.prune(model, RATIOS, recipe="magnitude", example_inputs=(images(),))
    assert isinstance(result.model, torch.fx.GraphModule) and result.report.verified["ok"]
    assert any("it can not be copied" in note for note in result.report.notes)


def test_a_result_says_what_matters(tmp_path: Path) -> None:
    result = pruned("timm_vit", None, target="macs=0.7", recipe="default", data=images(16).numpy())
    text = repr(result)
    assert len(text) < 2000 and len(repr(result.plan)) < 2000
    assert all(word in text for word in ("VisionTransformer", "macs", "proven", "off the dense model's"))
    buffer = io.BytesIO()
    torch.save(result.model, buffer)
    weights = sum(p.numel() * p.element_size() for p in result.model.parameters())
    assert buffer.tell() < 1.1 * weights + 200_000


def test_progress_is_shown_to_those_who_watch(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toastc.api, "PATIENCE", 0.0)
    told: list[str] = []
    pruned("timm_vit", tell=lambda stage, done=0.0: told.append(stage))
    assert {"export", "write", "verify"} <= set(told) and not capfd.readouterr().err
    pruned("timm_vit")
    assert "verify" in capfd.readouterr().err
    pruned("timm_vit", quiet=True)
    assert not capfd.readouterr().err
