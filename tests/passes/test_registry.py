"""Pipelines spelled as text."""

from __future__ import annotations

from dataclasses import make_dataclass

import pytest

from toastc.passes import MatchSites, PlanRatios, ScoreWeights, parse_passes
from toastc.passes.registry import build
from toastc.system.errors import ToastcError


def test_options_become_fields_and_matching_comes_first() -> None:
    spelled = parse_passes("score-weights{by=geometric-median, median=coordinate}, plan-ratios")
    assert spelled == (MatchSites(), ScoreWeights("geometric-median", "coordinate"), PlanRatios())
    assert parse_passes("match-sites,plan-ratios") == (MatchSites(), PlanRatios())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("score-wights", "score-wights"),
        ("score-weights{bye=l1}", "bye"),
        ("score-weights{by=l3}", "l3"),
        ("score-weights{by=l1", "can not read"),
        ("{}", "can not read"),
        ("plan-selections{per=token}", "per=token"),
        ("plan-selections{guide=maybe}", "guide=maybe"),
        ("plan-selections{sample=2}", "shares of the tokens"),
        ("score-weights{qk=v},plan-ratios", "qk=v"),
        ("match-sites{spare=last},plan-ratios", "spare=last"),
        ("plan-ratios{of=heads}", "of=heads"),
    ],
)
def test_misspelled_pipelines_are_named(text: str, says: str) -> None:
    with pytest.raises(ToastcError, match=says):
        parse_passes(text)


def test_options_have_their_types_whether_annotations_are_postponed_or_not() -> None:
    made = [make_dataclass("Own", [("sharp", kind, 1.0)]) for kind in (float, "float")]
    assert [build(cls, "own", "sharp=2").sharp for cls in made] == [2.0, 2.0]
    assert all(isinstance(build(cls, "own", "sharp=2").sharp, float) for cls in made)
