"""What is said while something takes long: the stage, its share, and how long the rest of the whole run will take."""

from __future__ import annotations

import pytest

from toastc.system import progress as module
from toastc.system.progress import Course, expect, progress, silent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_what_is_left_follows_from_what_passed(clock: list[float]) -> None:
    course = Course()
    assert course.share is None and course.left is None
    course.expect({"read": 10, "fit": 30})
    course.at("read", 0.0)
    assert course.share == 0 and course.left is None
    clock[0] += 5
    course.at("read", 0.5)
    assert course.share == pytest.approx(0.125) and course.left == pytest.approx(35)
    clock[0] += 5
    course.at("fit", 0.0)
    assert course.share == pytest.approx(0.25) and course.left == pytest.approx(30)
    course.at("something else", 0.3)  # that nobody spoke of
    assert course.share == 1.0
    course.expect({"again": 1})
    assert course.share == 0


def test_lines_tell_it(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as tell:
        tell("open")
        expect(tell, {"collect": 1, "fit": 3})
        tell("collect")
        clock[0] += 60
        tell("collect", 0.5)
        clock[0] += 60
        tell("fit")
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == ["[   0.0 s] collect", "[  60.0 s] collect 50 %, about 7 min left", "[ 120.0 s] fit, about 6 min left"]
    expect(silent, {"collect": 1})  # and who listens to nothing is asked nothing
