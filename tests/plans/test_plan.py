"""Plans: saved, loaded, embedded, checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from toastc.plans.plan import Basis, Keep, Plan, from_dict
from toastc.system.errors import ToastcError

RNG = np.random.default_rng(0)
PLAN = Plan(
    {
        "a.qk": Basis(RNG.standard_normal((2, 3, 8)), RNG.standard_normal((2, 8, 3))),
        "a.vo": Keep(np.array([[0, 2], [1, 3]])),
        "b.hidden": Keep(np.array([[0, 1]]), RNG.standard_normal((1, 4, 2))),
    }
)


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "p.safetensors")
    again = Plan.load(tmp_path / "p.safetensors")
    assert again.choices.keys() == PLAN.choices.keys()
    for name, choice in PLAN.choices.items():
        for key, array in choice.arrays().items():
            assert np.array_equal(again.choices[name].arrays()[key], array), (name, key)
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]


def test_the_embedded_form_tells_where_channels_stand() -> None:
    again = from_dict(PLAN.to_dict())
    for name, choice in PLAN.choices.items():
        assert np.array_equal(again.choices[name].index, choice.index), name


@pytest.mark.parametrize("content", [b"", b"not a plan", b"\x00" * 64])
def test_a_broken_plan_file_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(ToastcError, match="p: not a toastc plan"):
        Plan.load(tmp_path / "p")


def test_a_missing_plan_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ToastcError, match="no such plan"):
        Plan.load(tmp_path / "nowhere")
