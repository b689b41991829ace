"""What can not follow a merge of tokens is said with its node; one small ViT, with something unusual behind its first block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from twisted import HEADS, PATCHES, Twist, Vit, attended, plain, with_mask
from zoo_exports import quiet

import toastc
from toastc.system.errors import ToastcError

torch.set_num_threads(1)
IMAGE = torch.randn(2, 3, 16, 16)


def by_image_and_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    made = plain(*(t.flatten(0, 1) for t in (q, k, v)))
    return made.unflatten(0, (-1, HEADS))


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v)


UNMERGED = "takes merged tokens and a sequence whose grid was restored"
ONE = torch.rand(HEADS, 1, 1) > 2  # a mask of booleans that says the same of all tokens
REFUSED: dict[str, tuple[Twist, str, str]] = {
    "one patch is read": (lambda vit, x, seen: vit.head(x[:, 3]), "h1", "reads a single patch, which may be merged"),
    "tokens mixed by weights": (
        lambda vit, x, seen: x + vit.over_tokens(x.transpose(1, 2)).transpose(1, 2), "h1", "mixes tokens by weights of its own",
    ),
    "tokens before and behind": (lambda vit, x, seen: x + seen[1], "h1,v2", "tokens from before and behind a merge"),
    "tokens that were never merged": (lambda vit, x, seen: x + seen[0], "h1", UNMERGED),
    "a table": (lambda vit, x, seen: x * vit.places, "h1", "a number for each token, which can not be merged"),
    "normed over tokens": (
        lambda vit, x, seen: functional.layer_norm(x.transpose(1, 2), [PATCHES + 1]).transpose(1, 2), "h1", "norms over tokens",
    ),
    "a product with others": (
        lambda vit, x, seen: x @ (x.transpose(1, 2) @ seen[0]), "h1", "sums over merged tokens and others",
    ),
    "values of another sequence": (
        lambda vit, x, seen: vit.blocks[3](x, seen[0], plain), "h1", "sums over merged tokens and others",
    ),
    "values of another sequence, in one call": (
        lambda vit, x, seen: vit.blocks[3](x, seen[0], sdpa), "h1", "keys and values of different sequences",
    ),
    "values of another step, in one call": (
        lambda vit, x, seen: vit.blocks[3](x, seen[1], sdpa), "h1,v2", "keys and values of different sequences",
    ),
    "a mask of scores": (
        attended(with_mask(torch.randn(PATCHES + 1, PATCHES + 1))), "h1", "a mask with a number for each token",
    ),
    "a mask of booleans": (attended(with_mask(ONE)), "h1", "a mask of booleans, to which sizes can not be added"),
    "in order of size": (lambda vit, x, seen: x.sort(1).values, "h1", "takes merged tokens and"),
    "scores as an output": (
        lambda vit, x, seen: (x[:, 0], (x @ x.transpose(1, 2))), "h1", "an output of the model has merged tokens on two axes",
    ),
    "tokens last, as an output": (
        lambda vit, x, seen: (x[:, 0], x.transpose(1, 2)), "t1:3", "tokens merged at run time, on another axis than its second",
    ),
    "images and heads on one axis": (attended(by_image_and_head), "t1:3", "does not keep images and heads apart"),
    "keys of images and heads on one axis": (attended(by_image_and_head), "t3:3", "its keys can not be compared"),
    "one token more on the way": (
        lambda vit, x, seen: vit.blocks[3](torch.cat([vit.first.expand(x.shape[0], -1, -1), x], 1)), "h1,v3", "another sequence",
    ),
    "attention on attention": (
        lambda vit, x, seen: vit.blocks[3].ffn(vit.blocks[3].attention(*(2 * [vit.blocks[4].attention(x, x, plain)]), plain)),
        "t3:2", "a bipartite merge goes between the two",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_follow_a_merge(case: str) -> None:
    twist, tokens, words = REFUSED[case]
    vit = Vit(twist).eval()
    with quiet(), pytest.raises(ToastcError, match=words):
        toastc.prune(vit, tokens=tokens, example_inputs=(IMAGE,))


def test_without_a_twist_all_of_them_are_merged() -> None:
    """The refusals above are of what is unusual."""
    for tokens in ("h1,v2", "t1:3"):
        for attend in (plain, sdpa):
            made = toastc.prune(Vit(attended(attend)).eval(), tokens=tokens, example_inputs=(IMAGE,))
            assert made.report.verified is not None and made.report.verified["ok"]


def test_a_split_of_which_one_part_is_read() -> None:
    model = Vit(lambda vit, x, seen: vit.head(x.split([1, PATCHES], 1)[0][:, 0])).eval()
    report = toastc.prune(model, tokens="unread", example_inputs=(IMAGE,)).report
    assert report.verified is not None and report.verified["ok"]
    assert report.after.macs < report.before.macs and any("1 of 17 tokens are read" in note for note in report.notes)


def test_a_last_attention_that_asks_for_one_token_has_none_to_leave_out() -> None:
    """CrossViT's ends in the class token's question to the other branch."""
    model = Vit(lambda vit, x, seen: vit.head(vit.blocks[3].alone(x)[:, 0])).eval()
    made = toastc.prune(model, {"attention": 0.5, "round_to": 4}, recipe="magnitude", tokens="unread", example_inputs=(IMAGE,))
    assert made.report.verified is not None and made.report.verified["ok"]
    assert not any("tokens are read" in note for note in made.report.notes)
