"""A trained hybrid at 0.6 of the MACs, within a point; and one of shared weights, which loses more."""

from __future__ import annotations

import digits
import digits_field


def test_the_default_recipe_keeps_the_accuracy_of_a_hybrid() -> None:
    result = digits_field.pruned("hybrid")
    assert result.report.verified is not None and result.report.verified["ok"]
    assert result.report.after.macs <= 0.6 * result.report.before.macs
    assert digits.accuracy(result.model.eval()) >= digits.accuracy(digits_field.load("hybrid")) - 0.01


def test_shared_weights_are_cut_by_what_all_uses_show() -> None:
    """Consumers that are used again keep their fold: at 0.6 of the MACs it loses 20 points, at 0.8 few."""
    result = digits_field.pruned("shared", "macs=0.8")
    assert result.report.verified is not None and result.report.verified["ok"]
    assert digits.accuracy(result.model.eval()) >= 0.9
