"""Pipelines spelled as text."""

from __future__ import annotations

import pytest

from toastc.errors import ToastcError
from toastc.passes import MatchSites, PlanRatios, ScoreWeights, parse_passes


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
    ],
)
def test_misspelled_pipelines_are_named(text: str, says: str) -> None:
    with pytest.raises(ToastcError, match=says):
        parse_passes(text)
