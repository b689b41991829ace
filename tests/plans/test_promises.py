"""What may be lost: read, measured input by input, and held with its standard error."""

from __future__ import annotations

import numpy as np
import pytest

from toastc.plans.cost import Target
from toastc.plans.promises import KINDS, Promise, read_target
from toastc.system.errors import ToastcError


def kept(promise: Promise, dense: np.ndarray, small: np.ndarray, labels: np.ndarray | None = None, pieces: int = 4) -> object:
    parts = [None] * pieces if labels is None else np.array_split(labels, pieces)
    rows = zip(np.array_split(dense, pieces), np.array_split(small, pieces), parts, strict=True)
    return promise.kept([promise.kind.terms([a], [b], of) for a, b, of in rows])


def test_targets_are_budgets_or_promises() -> None:
    assert read_target("macs=0.6") == read_target(0.6) == Target("macs", 0.6)
    assert read_target("error=0.02") == Promise("error", 0.02)
    assert read_target(Promise("agree", 0.9)) == Promise("agree", 0.9)
    for wrong, said in (("error=2", "between 0 and 1"), ("agree=x", "not of the form"), ("size=0.5", "there are macs"),
                        ("drop=0", "between 0 and 100")):  # fmt: skip
        with pytest.raises(ToastcError, match=said):
            read_target(wrong)


def test_an_error_is_that_of_all_inputs_together() -> None:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((40, 10)) * rng.uniform(0.1, 3, (40, 1))
    small = dense + 0.05 * rng.standard_normal(dense.shape)
    found = kept(Promise("error", 0.02), dense, small)
    assert found.loss == pytest.approx(np.linalg.norm(small - dense) / np.linalg.norm(dense))  # type: ignore[attr-defined]


def test_its_standard_error_is_that_of_the_inputs() -> None:
    """The spread of what many draws of as many inputs say is what one of them says of itself."""
    rng = np.random.default_rng(1)
    said, worst = [], []
    for _ in range(400):
        dense = rng.standard_normal((64, 10)) * rng.uniform(0.5, 2, (64, 1))
        found = kept(Promise("error", 0.02), dense, dense + 0.1 * rng.standard_normal(dense.shape) * rng.uniform(0, 2, (64, 1)))
        said.append(found.loss**2)  # type: ignore[attr-defined]
        worst.append(found.most**2 - found.loss**2)  # type: ignore[attr-defined]
    assert np.mean(worst) == pytest.approx(np.std(said), rel=0.15)


@pytest.mark.parametrize(("flips", "back"), [(0, 0), (3, 0), (3, 3)])
def test_counts_have_one_more_that_may_turn_out_the_other_way(flips: int, back: int) -> None:
    labels = np.arange(100) % 5
    dense = np.eye(5)[labels]
    dense[:back] = np.roll(dense[:back], 1, axis=1)  # wrong, and right in the pruned model
    small = np.eye(5)[labels]
    small[50 : 50 + flips] = np.roll(small[50 : 50 + flips], 1, axis=1)
    agree = kept(Promise("agree", 0.97), dense, small)
    assert agree.to_dict()["measured"] == pytest.approx(1 - (flips + back) / 100)  # type: ignore[attr-defined]
    drop = kept(Promise("drop", 1.0), dense, small, labels)
    assert drop.to_dict()["measured"] == pytest.approx(flips - back)  # type: ignore[attr-defined]
    net = flips - back
    spread = (flips + back + 1 - net**2 / 100) ** 0.5
    assert drop.to_dict()["at_worst"] == pytest.approx(net + spread)  # type: ignore[attr-defined]
    assert drop.holds == (net + spread <= 1.0)  # type: ignore[attr-defined]


def test_masked_outputs_and_those_of_no_input_count_once() -> None:
    dense = [np.array([[1.0, -np.inf], [2.0, 3.0]]), np.array([2.0])]
    small = [np.array([[1.5, -np.inf], [2.0, 3.0]]), np.array([1.0])]
    lost, by = KINDS["error"].terms(dense, small, None)
    assert lost.tolist() == [0.25 + 0.5, 0.5]
    assert by.tolist() == [1 + 2, 13 + 2]
