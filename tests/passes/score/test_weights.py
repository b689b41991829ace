"""Planted zeros: channels that contribute nothing are the first to go, under every score, and nobody notices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from zoo_exports import quiet
from zoo_models import FAMILIES

import toastc
from toastc.passes import RECIPES
from toastc.passes.choose.ratios import best
from toastc.passes.score.weights import distance_to_median
from toastc.system.errors import NothingToPrune

torch.set_num_threads(1)


def plant(model: nn.Module, share: float, what: str) -> None:
    """Zero that share of every head's qk and vo channels and of the hidden ones; `what` sides of them."""
    rng = np.random.default_rng(0)
    for block in model.blocks:
        heads, dim = block.attn.num_heads, block.attn.head_dim
        qkv, proj, fc1, fc2 = block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2
        for head in range(heads):
            for part in (0, 2):
                rows = head * dim + rng.choice(dim, int(dim * share), replace=False)
                for kind in (0, 1) if part == 0 else (2,):
                    if what == "makers" or kind != 1:
                        qkv.weight[kind * heads * dim + rows] = 0
                        qkv.bias[kind * heads * dim + rows] = 0
                if part == 2 and what == "makers":
                    proj.weight[:, rows] = 0
        hidden = rng.choice(fc1.out_features, int(fc1.out_features * share), replace=False)
        fc2.weight[:, hidden] = 0
        if what == "makers":
            fc1.weight[hidden] = 0
            fc1.bias[hidden] = 0


NEED_DATA = ("calibrated", "toast", "vbp", "corp", "taylor")
# By what makes a channel, not by what becomes of it:
PUBLISHED = ("toast", "toast-image", "toast-batch", "vbp", "corp", "taylor")
PLANTED = [("makers", r) for r in RECIPES] + [("one side", r) for r in RECIPES if r not in PUBLISHED]


@pytest.mark.parametrize(("what", "recipe"), PLANTED)
def test_planted_zeros_are_found_by_every_score(recipe: str, what: str) -> None:
    family = FAMILIES["deit_tiny"]
    with quiet(), torch.no_grad():
        model = family.small().eval()
        plant(model, 0.5, what)
        args = tuple(family.inputs(False, 2).values())
        ratios = {"attention": 0.5, "ffn": 0.5, "round_to": 1}
        data = [tuple(family.inputs(False, 2).values()) for _ in range(8)] if recipe in NEED_DATA else None
        small = toastc.prune(model, ratios, recipe=recipe, data=data, example_inputs=args).model
        dense, pruned = model(*args), small(*args)
    assert (dense - pruned).abs().max() <= 1e-5 * dense.abs().max()


def test_all_zero_ratios_give_a_bit_equal_model() -> None:
    family = FAMILIES["deit_tiny"]
    with quiet(), torch.no_grad():
        model = family.small().eval()
        args = tuple(family.inputs(False, 2).values())
        small = toastc.prune(model, {"attention": 0, "ffn": 0}, example_inputs=args).model
        assert torch.equal(model(*args), small(*args))
    for name, value in model.state_dict().items():
        assert torch.equal(small.state_dict()[name], value), name


def test_a_model_without_sites_says_so() -> None:
    with quiet(), pytest.raises(NothingToPrune, match="no attention and no FFN"):
        toastc.prune(nn.Sequential(nn.Linear(4, 4)).eval(), 0.5, example_inputs=(torch.zeros(2, 4),))


def test_the_geometric_median_is_the_textbook_one() -> None:
    """For points on a line the geometric median is the median, which the mean is not."""
    rows = np.array([[0.0], [1.0], [2.0], [3.0], [100.0]])
    assert distance_to_median(rows, "weiszfeld", steps=500).argmin() == 2
    assert distance_to_median(rows, "coordinate").argmin() == 2


def test_best_keeps_the_highest_in_rising_order() -> None:
    assert best(np.array([[3.0, 1.0, 2.0, 5.0]]), 2).tolist() == [[0, 3]]
