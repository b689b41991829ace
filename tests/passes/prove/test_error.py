"""How far outputs moved: said of numbers of a kind, which a class or a count beside them is not, in any type of torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from small import vit_of_transformers
from torch import Tensor, nn

import toastc
from toastc.passes.prove import furthest


class Counted(nn.Module):
    """Logits, and a large whole number."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.whole = vit_of_transformers(num_labels=4), whole

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        logits = self.inner(image).logits
        return (logits, logits.argmax(1) + 1000) if self.whole else (logits,)


def test_whole_numbers_are_left_out() -> None:
    data, errors = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32), []
    for whole in (False, True):
        words: dict[str, Any] = {"data": data, "example_inputs": (torch.from_numpy(data[:2]),)}
        report = toastc.prune(Counted(whole).eval(), 0.5, recipe="corp", **words).report
        assert report.measured is not None
        errors.append(report.measured["error"])
    assert errors[0] == errors[1] > 0


def test_bfloat16_is_compared_as_it_is() -> None:
    dense = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert furthest([dense], [dense]) == 0 < furthest([dense], [dense + 1])


def test_no_outputs_prove_nothing() -> None:
    assert furthest([], []) == float("inf")
