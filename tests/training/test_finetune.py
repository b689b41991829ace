"""Training what was pruned: modules that learn, files that come back, masks that are what the cut is."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import digits
import numpy as np
import pytest
import torch
from conftest import RATIOS
from safetensors import safe_open
from safetensors.torch import save_file
from small import model_and_inputs, numbers
from torch import Tensor, nn

import toastc
from toastc.system.errors import ToastcError
from toastc.training import finetune

torch.set_num_threads(1)
WEIGHTS = {"recipe": "magnitude"}  # the quickest


def shaken(module: nn.Module) -> nn.Module:
    """Other weights, as training leaves them."""
    torch.manual_seed(2)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return module


# ---- learning --------------------------------------------------------------------------------------------


def test_a_pruned_model_learns_what_it_lost() -> None:
    (images, labels), _ = digits.data()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    dense = digits.load()
    ratios = {"attention": 0.75, "ffn": 0.9, "round_to": 1}
    small = finetune.trainable(dense, ratios, example_inputs=(x[:2],), drop_path=0.05, **WEIGHTS)
    assert small.training
    assert sum(p.numel() for p in small.parameters()) < 0.4 * sum(p.numel() for p in dense.parameters())
    before = digits.accuracy(small.eval())
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(small.train().parameters(), 1e-3)
    losses = []
    for picked in torch.randperm(len(x)).split(32)[:40]:
        loss = nn.functional.cross_entropy(small(x[picked]), y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert digits.accuracy(small.eval()) > before + 0.1


@pytest.mark.parametrize("name", ["beit_base", "swinv2_tiny", "toy_gqa"])
def test_gradients_reach_every_parameter(name: str) -> None:
    dense, args, others = model_and_inputs(name)
    dense.requires_grad_(False)
    small = finetune.trainable(dense, RATIOS, example_inputs=args, **WEIGHTS)
    made = small(*others)
    assert len(made) == 5
    (made * torch.randn_like(made)).sum().backward()
    for key, p in small.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), key
        assert p.grad.abs().max() > 0, key
    assert not any(p.requires_grad for p in dense.parameters())


def test_weights_that_the_dense_model_computes_learn_as_well() -> None:
    """BEiT joins its qkv bias from pieces; in the pruned model it is one tensor, and no dead one."""
    dense, args, _ = model_and_inputs("beit_base")
    small = finetune.trainable(dense, RATIOS, example_inputs=args, **WEIGHTS)
    wide = {tuple(p.shape) for n, p in small.named_parameters() if "attn" in n and p.ndim == 1}
    rows = {p.shape[0] for n, p in small.named_parameters() if n.endswith("qkv.weight")}
    assert {(r,) for r in rows} <= wide
    assert not [n for n, b in small.named_buffers() if b.is_floating_point()]


class AsFloat(nn.Module):
    """Where the exporter notes which type it saw."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).to(torch.float32)


def test_mixed_precision() -> None:
    dense, args, others = model_and_inputs("dinov3")
    small = finetune.trainable(AsFloat(dense).eval(), RATIOS, example_inputs=args, **WEIGHTS)
    with torch.autocast("cpu", torch.bfloat16):
        made = small(*others)
    made.sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    apart = (made - small(*others)).abs().max()
    assert 0 < apart < 0.1 * made.abs().max()


# ---- stochastic depth ------------------------------------------------------------------------------------


def test_branches_are_left_out_in_training_only() -> None:
    dense, args, (x,) = model_and_inputs("deit_tiny")
    plain = finetune.trainable(dense, RATIOS, example_inputs=args, **WEIGHTS)
    small = finetune.trainable(dense, RATIOS, example_inputs=args, drop_path=0.6, **WEIGHTS)
    drops = [m for m in small.modules() if isinstance(m, finetune.DropPath)]
    assert [round(m.rate, 6) for m in drops] == [0.0, 0.2, 0.4, 0.6]
    assert plain.state_dict().keys() == small.state_dict().keys()
    expected = plain(x).detach()
    assert torch.equal(plain(x), expected)
    for mode in (True, False, True):
        small.train(mode)
        made = [small(x).detach() for _ in range(8)]
        assert any(not torch.equal(m, expected) for m in made) == mode
        assert any(not torch.equal(m, made[0]) for m in made) == mode
    for drop in drops:
        drop.rate = 1 - 1e-12  # all is left out: embedding, norm and head remain
    with torch.no_grad():
        rest = dense.forward_head(dense.norm(dense._pos_embed(dense.patch_embed(x))))
        assert torch.allclose(small(x), rest, atol=1e-6)


@pytest.mark.parametrize(("name", "count"), [("swinv2_tiny", 8), ("vit_parallel", 4), ("vit_22b_fused", 2)])
def test_each_residual_branch_is_found_once(name: str, count: int) -> None:
    dense, args, _ = model_and_inputs(name)
    small = finetune.trainable(dense, RATIOS, example_inputs=args, drop_path=0.1, **WEIGHTS)
    assert sum(isinstance(m, finetune.DropPath) for m in small.modules()) == count


def test_what_is_left_out_is_made_up_for() -> None:
    drop, x = finetune.DropPath(0.25), torch.ones(20000, 2, 1)
    torch.manual_seed(0)
    made = drop.train()(x)
    assert torch.equal(made[:, 0], made[:, 1])
    assert sorted(made.unique().tolist()) == [0.0, pytest.approx(4 / 3)]
    assert made.mean().item() == pytest.approx(1, abs=0.02)
    assert drop.eval()(x) is x


def test_drop_path_that_makes_no_sense() -> None:
    plain, x = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)).eval(), torch.randn(2, 3, 8)
    with pytest.raises(ToastcError, match="share"):
        finetune.trainable(plain, RATIOS, example_inputs=(x,), drop_path=1.0, **WEIGHTS)
    with pytest.raises(ToastcError, match="no residual branch"):
        finetune.trainable(plain, RATIOS, example_inputs=(x,), drop_path=0.1, **WEIGHTS)


# ---- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "recipe"), [("deit_tiny", "svd"), ("beit_base", "magnitude"), ("dinov3", "toast-image")])
def test_a_saved_module_comes_back(name: str, recipe: str, tmp_path: Path) -> None:
    dense, args, others = model_and_inputs(name)
    heads = {"attention": {"qk": 0.5, "vo": 0.25, "heads": 0.3}, "ffn": 0.5, "round_to": 4} if name == "beit_base" else RATIOS
    small = shaken(finetune.trainable(dense, heads, example_inputs=args, drop_path=0.2, recipe=recipe)).eval()
    finetune.save(copy.deepcopy(small), tmp_path / "m.safetensors")
    other, *_ = model_and_inputs(name, seed=5)
    again = finetune.load(other, tmp_path / "m.safetensors", example_inputs=args)
    assert not again.training
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    with torch.no_grad():
        assert torch.equal(numbers(again(*others)), numbers(small(*others)))
    assert again.meta[finetune.PLAN].to_dict() == small.meta[finetune.PLAN].to_dict()
    finetune.save(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_the_file_holds_names_and_index_sets(tmp_path: Path) -> None:
    dense, args, _ = model_and_inputs("deit_tiny")
    result = toastc.prune(dense, RATIOS, example_inputs=args, **WEIGHTS)
    finetune.save(result.model, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "np") as file:
        about = json.loads(file.metadata()[finetune.PLAN])
        assert set(file.keys()) == set(result.model.state_dict())
    assert about["choices"]["blocks.1.mlp.hidden"]["index"] == result.plan.choices["blocks.1.mlp.hidden"].index.tolist()


def test_files_that_are_something_else(tmp_path: Path) -> None:
    dense, args, _ = model_and_inputs("deit_tiny")
    small, path = finetune.trainable(dense, RATIOS, example_inputs=args, **WEIGHTS), tmp_path / "m.safetensors"
    finetune.save(small, path)
    whole = path.read_bytes()
    with safe_open(path, "pt") as file:
        plan = file.metadata()[finetune.PLAN]
    state = {k: v.clone() for k, v in small.state_dict().items()}

    def refuses(model: nn.Module, words: str) -> None:
        with pytest.raises(ToastcError, match=words) as caught:
            finetune.load(model, path, example_inputs=args)
        assert str(path) in str(caught.value) or "plan:" in str(caught.value)

    for content in (whole[: len(whole) // 2], b"hello", b""):
        path.write_bytes(content)
        refuses(dense, "not a file of")
    for about, words in (({}, "no plan"), ({finetune.PLAN: "{"}, "not a file"), ({finetune.PLAN: "[]"}, "not a file")):
        save_file(state, path, about)
        refuses(dense, words)
    save_file({k: v for k, v in state.items() if k != "norm.weight"}, path, {finetune.PLAN: plan})
    refuses(dense, "do not fit")
    path.unlink()
    refuses(dense, "no such file")
    finetune.save(small, path)
    refuses(model_and_inputs("hf_vit_sdpa")[0], "no such coupling")
    with pytest.raises(ToastcError, match="no plan"):
        finetune.save(dense, path)
    assert path.read_bytes() == whole


# ---- distillation ----------------------------------------------------------------------------------------


def test_distillation_is_the_textbook_formula() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9)).train()
    x, logits, loss = torch.randn(6, 4), torch.randn(6, 3, requires_grad=True), torch.tensor(0.7)
    distil = finetune.Distillation(teacher, weight=0.25, temperature=2.0).train()
    assert not teacher.training
    made = distil(x, logits, loss)
    p, q = (teacher(x) / 2).softmax(-1), (logits / 2).softmax(-1)
    expected = 0.75 * 0.7 + 0.25 * 4 * (p * (p.log() - q.log())).sum(-1).mean()
    assert made.item() == pytest.approx(expected.item(), rel=1e-5)
    made.backward()
    assert logits.grad is not None and logits.grad.abs().max() > 0
    assert all(w.grad is None for w in teacher.parameters())
    assert distil(x, teacher(x), loss).item() == pytest.approx(0.75 * 0.7, abs=1e-6)
    assert finetune.Distillation(teacher, weight=0)(x, logits, loss).item() == pytest.approx(0.7)
