"""The ratio file: what it means, and how it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from toastc.plans.ratios import kept_width, narrowed, parse
from toastc.plans.sites import Coupling, Site
from toastc.system.errors import ToastcError


def site(name: str, kind: str) -> Site:
    if kind == "ffn":
        return Site(name, kind, (Coupling("hidden", 1, 64, ()),), 0, 0)
    couplings = (Coupling("qk", 2, 32, ()), Coupling("vo", 2, 32, ()))
    return Site(name, kind, couplings, 0, 0, heads=Coupling("heads", 1, 2, ()))


SITES = (
    site("blocks.0.attn", "attention"),
    site("blocks.0.mlp", "ffn"),
    site("blocks.1.attn", "attention"),
    site("blocks.1.mlp", "ffn"),
)


@pytest.mark.parametrize(
    ("width", "ratio", "step", "kept"),
    [
        (64, 0.5, 8, 32),
        (64, 0.9, 8, 8),
        (64, 0.3, 8, 48),
        (64, 0.9, 1, 7),
        (10, 0.7, 1, 3),
        (20, 0.1, 8, 20),
        (4, 0.9, 1, 2),
        (3072, 0.5, 8, 1536),
    ],
)
def test_kept_width_rounds_up(width: int, ratio: float, step: int, kept: int) -> None:
    assert kept_width(width, ratio, step) == kept


def widths(data: object) -> dict[str, int]:
    return {name: count for name, _, count in narrowed(parse(data), SITES)}


def test_a_number_for_attention_means_qk_and_vo() -> None:
    assert widths({"attention": 0.5}) == {f"blocks.{i}.attn.{c}": 16 for i in (0, 1) for c in ("qk", "vo")}


def test_a_list_gives_one_value_per_site() -> None:
    assert widths({"ffn": [0, 0.5]}) == {"blocks.1.mlp.hidden": 32}


def test_globs_override_and_the_later_wins() -> None:
    data = {"attention": 0.5, "ffn": 0.5, "sites": {"blocks.*": 0, "blocks.1.mlp": {"hidden": 0.25}}}
    assert widths(data) == {"blocks.1.mlp.hidden": 48}


def test_heads_are_whole_and_not_rounded() -> None:
    assert widths({"attention": {"heads": 0.5}}) == {"blocks.0.attn.heads": 1, "blocks.1.attn.heads": 1}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"atention": 0.5}, "atention"),
        ({"attention": {"kq": 0.5}}, "attention.kq"),
        ({"ffn": 1}, "ffn"),
        ({"ffn": -0.1}, "ffn"),
        ({"ffn": True}, "ffn"),
        ({"ffn": float("nan")}, "ffn"),
        ({"ffn": "0.5"}, "ffn"),
        ({"ffn": [0.5]}, "ffn.hidden"),
        ({"attention": {"qk": [0.1, 0.2, 0.3]}}, "attention.qk"),
        ({"sites": {"layers.*": 0.5}}, "layers.*"),
        ({"sites": {"blocks.0.mlp": {"qk": 0.5}}}, "blocks.0.mlp"),
        ({"sites": {"blocks.0.mlp": 2}}, "blocks.0.mlp"),
        ({"round_to": 0}, "round_to"),
        ({"round_to": 2.5}, "round_to"),
        ([0.5], "JSON object"),
        (None, "JSON object"),
    ],
)
def test_nonsense_is_an_error_that_names_the_key(data: object, says: str) -> None:
    with pytest.raises(ToastcError, match="ratios") as caught:
        widths(data)
    assert says in str(caught.value)


def test_ratios_are_plain_numbers() -> None:
    assert np.isclose(parse(0.25).for_sites(SITES)["blocks.0.attn"]["qk"], 0.25)
