"""An option is said once: what a pass takes is found in the command, in `prune`, in the backend and in Olive's pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from olive.hardware.accelerator import DEFAULT_CPU_ACCELERATOR

from toastc.cli.parser import parser_for
from toastc.compiler import options
from toastc.compiler.options import ANYWHERE, BACKEND, COMMAND, OLIVE, PYTHON, Options, signature, stated, word, words
from toastc.compiler.request import Request
from toastc.compiler.sources.dynamo import checked
from toastc.olive import ToastcPrune
from toastc.passes import MatchSites, PlanRatios, ScoreWeights, State, taken
from toastc.plans.targets import RUNTIMES


@dataclass(frozen=True)
class Blur:
    """A pass of somebody else's, that takes an option."""

    strength: float = taken(0.1, "blur")
    name = "blur"

    def __call__(self, state: State) -> State:
        return replace(state, scores={name: scores * self.strength for name, scores in state.scores.items()})


@dataclass(frozen=True)
class More(Options):
    blur: float | None = word(None, "how much scores are blurred", ANYWHERE, type=float, metavar="SHARE")


def test_one_field_reaches_the_pass_from_all_four_doors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "Options", More)
    assert parser_for("prune").parse_args(["m.onnx", "--blur", "0.5"]).blur == 0.5
    assert "how much scores are blurred" in parser_for("prune").format_help()
    assert signature(PYTHON, "ratios").parameters["blur"].default is None
    assert checked({"blur": 0.5})["blur"] == 0.5
    assert "blur" in ToastcPrune._default_config(DEFAULT_CPU_ACCELERATOR)
    passes = (MatchSites(), ScoreWeights(), Blur(), PlanRatios())
    request = Request.of(stated({"ratios": 0.5, "blur": 0.5, "passes": passes}))
    sizes: Any = type("Sizes", (), {"input_sizes": lambda self: {}})()
    assert request.steps(sizes)[2] == Blur(0.5)
    assert request.steps(sizes)[1] == ScoreWeights()
    assert Request.of(stated({"ratios": 0.5, "passes": passes})).steps(sizes)[2] == Blur(0.1)


def test_what_is_said_nowhere_is_known_nowhere() -> None:
    assert "blur" not in {name for name, _, _ in words(COMMAND)}
    with pytest.raises(Exception, match="unknown option"):
        checked({"blur": 0.5})


def test_prune_shows_all_its_words() -> None:
    import inspect

    import toastc

    shown = inspect.signature(toastc.prune).parameters
    assert list(shown)[:2] == ["model", "ratios"] and shown["target"].kind is inspect.Parameter.KEYWORD_ONLY
    assert set(shown) == {"model"} | {name for name, _, _ in words(PYTHON)}
    with pytest.raises(TypeError, match="unexpected keyword argument 'ratio'"):
        toastc.prune("m.onnx", ratio=0.5)


def test_every_word_can_be_said_somewhere() -> None:
    doors = [{name for name, _, _ in words(door)} for door in (COMMAND, PYTHON, BACKEND, OLIVE)]
    assert set().union(*doors) == set(Options.__dataclass_fields__)
    assert {"ratios", "target", "plan", "recipe", "verify"} <= set.intersection(*doors)


def test_a_runtime_is_a_row() -> None:
    assert set(RUNTIMES) == {"portable", "ort-cpu", "ort-cuda", "tensorrt", "openvino"}
    assert set(parser_for("prune").parse_args(["m", "--for", "openvino"]).__dict__) >= {"runtime"}
