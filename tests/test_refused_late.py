"""What is refused when a pass is at work already: by what it finds in the graph, in the plan, or in the file it has written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import ZooFile
from onnx import parser, save
from zoo_exports import quiet

import toastc
from toastc.choices import Keep
from toastc.deploy_onnx import Deployed, compare
from toastc.errors import CannotShrink, ToastcError, VerificationFailed
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.passes import MatchSites, ScoreWeights, Shrink
from toastc.pipeline import PassFailed, State, run
from toastc.plan import Plan


@dataclass(frozen=True)
class Broken:
    name = "broken"

    def __call__(self, state: State) -> State:
        raise ZeroDivisionError("of course")


def matched(path: Path) -> State:
    return MatchSites()(State(OnnxGraph(load_model(path))))


def test_a_pass_that_breaks_is_named_with_those_before_it(deit: Path) -> None:
    with pytest.raises(PassFailed, match=r"pass broken failed \(passes before it: score-weights\): ZeroDivisionError of course"):
        run([ScoreWeights(), Broken()], matched(deit))


@pytest.mark.parametrize(
    ("name", "index", "why"),
    [
        ("blocks.0.mlp.hidden", np.arange(9999)[None], "it is for other widths"),
        ("blocks.0.attn.qk", np.arange(4)[None], "it is for other widths"),
        ("blocks.0.mlp.hiden", np.arange(4)[None], "no such coupling"),
    ],
)
def test_a_plan_of_somebody_elses_pass_is_looked_at(deit: Path, name: str, index: np.ndarray, why: str) -> None:
    state = dataclasses.replace(matched(deit), plan=Plan({name: Keep(index)}))
    with pytest.raises(ToastcError, match=f"plan: {name} can not be cut: .*{why}"):
        run([Shrink()], state)


def test_a_fold_for_more_heads_than_stay(deit: Path) -> None:
    heads, width = 3, 16
    fold = np.zeros((heads * width, heads * width), np.float32)
    vo = Keep(np.tile(np.arange(width), (heads, 1)), fold)
    plan = Plan({"blocks.0.attn.heads": Keep(np.array([[0, 1]])), "blocks.0.attn.vo": vo})
    with pytest.raises(CannotShrink, match="the plan folds into 48 channels, 32 stay"):
        toastc.prune(deit, plan=plan)


def test_models_that_can_not_be_exported(tmp_path: Path) -> None:
    """Its attention has five axes, of which torch's exporter knows nothing."""
    name = "timm:samvit_base_patch16?img_size=32&patch_size=8&embed_dim=48&depth=1&num_heads=3"
    with quiet(), pytest.raises(ToastcError, match="can not be exported"):
        toastc.export(name, tmp_path / "o.onnx", weights="random")
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize(("kind", "node"), [("fp16", "Log"), ("int8", "Sqrt")])
def test_a_deployed_file_whose_outputs_are_no_numbers(tmp_path: Path, kind: str, node: str) -> None:
    for name, op in (("proven", "Identity"), ("made", node)):
        text = f'<ir_version: 9, opset_import: ["": 20]> g (float[2, 8] x) => (float[2, 8] y) {{ y = {op}(x) }}'
        save(parser.parse_model(text), tmp_path / f"{name}.onnx")
    with pytest.raises(VerificationFailed, match=f"{kind}: the outputs are not numbers any more; nothing was written"):
        compare(tmp_path / "proven.onnx", tmp_path / "made.onnx", Deployed("portable", kind, 0, ()), None, 0)


def test_columns_are_not_merged_behind_pairs(zoo_file: ZooFile) -> None:
    with pytest.raises(ToastcError, match="there is no grid any more; columns and rows are merged first"):
        toastc.prune(zoo_file("deit_tiny"), tokens="t0:2,h1")
