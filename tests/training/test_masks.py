"""Masks for those who train the dense module: what they leave is what the cut leaves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from oracle import random_plan
from small import model_and_inputs, numbers
from torch import nn

import toastc
from toastc.graphs.fx import FxGraph
from toastc.graphs.fx.capture import capture as export
from toastc.passes.match import match
from toastc.plans.plan import Basis, Keep, Plan
from toastc.system.errors import ToastcError
from toastc.training.masks import Masks

torch.set_num_threads(1)
MASKED = ["deit_tiny", "beit_base", "swin_tiny", "vit_relpos_small", "eva02_tiny", "toy_gqa"]


@pytest.mark.parametrize("name", MASKED)
def test_masked_and_cut_are_the_same(name: str) -> None:
    """To begin with, whatever the weights were; and after training, whose steps move what is masked as well."""
    dense, args, others = model_and_inputs(name)
    plan = random_plan(match(FxGraph(export(dense, args)[0]))[1], seed=1)
    masks, original = Masks(dense, plan, args), copy.deepcopy(dense)
    masks.apply()
    for (key, p), old in zip(dense.named_parameters(), original.parameters(), strict=True):
        assert torch.equal(p, old * masks.masks.get(key, torch.ones_like(p, dtype=torch.bool)))

    def same(source: nn.Module) -> bool:
        with torch.no_grad():
            cut = numbers(toastc.prune(source, plan=plan, example_inputs=args, verify=False).model(*others))
            return bool((numbers(dense(*others)) - cut).abs().max() <= 1e-5 * cut.abs().max())

    assert same(original)
    optimizer = torch.optim.AdamW(dense.parameters(), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        torch.utils._pytree.tree_leaves(dense(*others))[0].square().mean().backward()
        optimizer.step()
        masks.apply()
    assert same(dense)
    with torch.no_grad():
        assert not torch.allclose(numbers(dense(*others)), numbers(original(*others)), atol=1e-2)


def test_masks_cover_all_that_is_removed_and_nothing_else() -> None:
    dense, args, _ = model_and_inputs("deit_tiny")
    plan = Plan(
        {"blocks.1.mlp.hidden": Keep(np.arange(3, 150)[None]), "blocks.0.attn.vo": Keep(np.arange(10)[None].repeat(3, 0))}
    )
    masks = Masks(dense, plan, args).masks
    kept = torch.zeros(192, dtype=torch.bool)
    kept[3:150] = True
    head = torch.arange(48) % 16 < 10  # three heads of 16
    expected = {
        "blocks.1.mlp.fc1.weight": kept[:, None], "blocks.1.mlp.fc1.bias": kept, "blocks.1.mlp.fc2.weight": kept,
        "blocks.0.attn.qkv.weight": torch.cat([torch.ones(96, dtype=torch.bool), head])[:, None],
        "blocks.0.attn.qkv.bias": torch.cat([torch.ones(96, dtype=torch.bool), head]), "blocks.0.attn.proj.weight": head,
    }  # fmt: skip
    assert masks.keys() == expected.keys()
    for name, mask in masks.items():
        assert torch.equal(mask, expected[name].expand_as(mask)), name


def test_masks_for_plans_that_mix_or_do_not_fit() -> None:
    dense, args, _ = model_and_inputs("deit_tiny")
    fold, turn = np.ones((1, 192, 2)), np.eye(16)[None, :4].repeat(3, 0)
    for choice in (Keep(np.arange(2)[None], fold), Basis(turn, turn.swapaxes(1, 2))):
        with pytest.raises(ToastcError, match=r"blocks\.0\.x mixes channels"):
            Masks(dense, Plan({"blocks.0.x": choice}), args)
    with pytest.raises(ToastcError, match="no such coupling"):
        Masks(dense, Plan({"blocks.7.attn.qk": Keep(np.arange(4)[None])}), args)


def test_a_weight_that_is_no_parameter_can_not_be_masked() -> None:
    dense, args, _ = model_and_inputs("deit_tiny")
    fc1 = dense.blocks[0].mlp.fc1
    frozen = fc1.weight.detach().clone()
    del fc1.weight
    fc1.register_buffer("weight", frozen)
    with pytest.raises(ToastcError, match="no parameter"):
        Masks(dense, Plan({"blocks.0.mlp.hidden": Keep(np.arange(8)[None])}), args)
