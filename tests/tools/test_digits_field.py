"""A trained hybrid and a trained model of shared weights: 0.6 of the MACs, within a point."""

from __future__ import annotations

import digits
import digits_field
import pytest


@pytest.mark.parametrize("name", digits_field.MODELS)
def test_the_default_recipe_keeps_the_accuracy(name: str) -> None:
    result = digits_field.pruned(name)
    assert result.report.verified is not None and result.report.verified["ok"]
    assert result.report.after.macs <= 0.6 * result.report.before.macs
    assert digits.accuracy(result.model.eval()) >= digits.accuracy(digits_field.load(name)) - 0.01
