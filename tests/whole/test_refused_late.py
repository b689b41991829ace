"""What is refused when a pass is at work already: by what it finds in the graph, in the plan, or in the file it has written."""

from __future__ import annotations

import dataclasses
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import ZooFile
from handwritten import saved, words, written
from onnx import parser, save
from torch import Tensor, nn
from zoo_exports import quiet

import toastc
from toastc.calibration.resume import fingerprint
from toastc.compiler.deploy import Deployed, compare
from toastc.graphs import Kind
from toastc.graphs.fx import FxGraph
from toastc.graphs.onnx import OnnxGraph, load_model, write_model
from toastc.passes import MatchSites, PlanLosses, PlanRatios, ScoreTaylor, ScoreWeights, Shrink
from toastc.passes.deploy.quantize import Quantize
from toastc.passes.match import match
from toastc.passes.prove.padding import copier, pad_back
from toastc.passes.state import PassFailed, State, run
from toastc.plans.choices import Keep
from toastc.plans.plan import Plan
from toastc.system.errors import CannotShrink, ToastcError, VerificationFailed


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


class Ffn(nn.Module):
    """Three linears in a row, the one in the middle without a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.middle = nn.Linear(64, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.middle(self.up(self.norm(x)).relu()).relu())


X = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))


def captured(model: nn.Module) -> FxGraph:
    with quiet():
        return FxGraph(torch.export.export(model.eval(), (X,)).module())


def test_a_shift_for_which_there_was_no_bias() -> None:
    """One is put there, and cut with what its linear makes."""
    with quiet():
        result = toastc.prune(Ffn().eval(), {"ffn": 0.5}, recipe="vbp", data=torch.randn(64, 5, 32), example_inputs=(X,))
    assert result.report.verified is not None and result.report.verified["ok"]
    assert result.model.middle.bias.shape == (32,)


@dataclass(frozen=True)
class Louder:
    """Adds to a bias behind everybody's back."""

    name = "louder"

    def __call__(self, state: State) -> State:
        op = [op for op in state.graph.ops if op.kind is Kind.LINEAR][-1]
        bias = state.graph.constant(op.inputs[2])
        state.graph.set_constant(op, 2, bias.shape, lambda: bias + 1)
        return state


def test_a_pass_that_damages_a_module() -> None:
    passes = (MatchSites(), ScoreWeights(), Louder(), PlanRatios())
    with (
        quiet(),
        pytest.raises(VerificationFailed, match=r"Ffn: verification failed: outputs differ by"),
    ):
        toastc.prune(Ffn().eval(), {"ffn": {"hidden": 0.5}}, passes=passes, example_inputs=(X,))


def test_a_plan_with_a_shift_that_the_file_has_not(tmp_path: Path) -> None:
    """Its first linear lost half of its rows by another plan, and nothing was added anywhere."""
    dense = saved(words(), tmp_path)
    made = toastc.prune(dense, {"ffn": 0.5, "round_to": 1}, recipe="magnitude", output=tmp_path / "o.onnx")
    ((name, kept),) = made.plan.choices.items()
    shifted = dataclasses.replace(kept, shift=np.ones((1, 32)))
    graph, small = (OnnxGraph(load_model(path)) for path in (dense, tmp_path / "o.onnx"))
    sites = match(graph)[1], match(small)[1]
    assert pad_back(graph, sites[0], small, sites[1], made.plan).count == 2
    with pytest.raises(VerificationFailed, match=f"{name}: the plan shifts a bias, the pruned model has none"):
        pad_back(graph, sites[0], small, sites[1], Plan({name: shifted}))


def test_a_shifted_bias_of_another_size(tmp_path: Path) -> None:
    graph = OnnxGraph(load_model(saved(words(), tmp_path)))
    up, down = (op for op in graph.ops if op.kind is Kind.LINEAR)
    assert copier(graph, up, 1, graph, (up, 1))().shape == (16, 32)
    save(written("y = MatMul(x, w)", {"w": (8, 4)}), tmp_path / "small.onnx")
    small = OnnxGraph(load_model(tmp_path / "small.onnx"))
    with pytest.raises(VerificationFailed, match=r"down: a shifted bias has 32 numbers, not \(32, 16\)"):
        copier(graph, down, 1, small, (small.ops[0], 1))()


def test_channels_that_can_not_be_watched() -> None:
    """What is not labelled where it is read."""
    state = MatchSites()(State(captured(Ffn()), data=[{"x": X.numpy()}]))
    state.matched.flow.labels.clear()
    with pytest.raises(ToastcError, match=r"score-taylor: .* can not be watched; set its ratio to 0 or use another recipe"):
        ScoreTaylor()(state)
    state = dataclasses.replace(state, widths={f"{state.sites[0].name}.heads": 1})
    with pytest.raises(ToastcError, match=r"heads: nothing is known of its values; use another recipe, or set its ratio to 0"):
        PlanLosses()(state)
    name = f"{state.sites[0].name}.hidden"
    planned = PlanLosses()(dataclasses.replace(state, widths={name: 16}))
    assert planned.notes == (f"{name}: could not be watched; its largest channels stay",)


def test_what_is_not_quantised(tmp_path: Path) -> None:
    path = tmp_path / "relu.onnx"
    with pytest.raises(CannotShrink, match="a torch module is not quantised here; export it to ONNX"):
        Quantize()(State(captured(Ffn()), data=[{"x": X.numpy()}]))
    save(parser.parse_model('<ir_version: 9, opset_import: ["": 20]> g (float[2, 8] x) => (float[2, 8] y) { y = Relu(x) }'), path)
    with pytest.raises(ToastcError, match="no linear was found that could be quantised"):
        Quantize()(State(OnnxGraph(load_model(path))))


def test_an_operand_of_another_shape(tmp_path: Path) -> None:
    file, module = OnnxGraph(load_model(saved(words(), tmp_path))), captured(Ffn())
    linears = [next(op for op in graph.ops if op.kind is Kind.LINEAR) for graph in (file, module)]
    wrong = (2, 2), lambda: np.zeros((3, 3), np.float32)
    with pytest.raises(CannotShrink, match=re.escape("operand 1 became (3, 3), expected (2, 2)")):
        module.set_constant(linears[1], 1, *wrong)
    file.set_constant(linears[0], 1, *wrong)  # worked out when the file is written
    with pytest.raises(CannotShrink, match=re.escape("operand 1 became (3, 3), expected (2, 2)")):
        write_model(file.model, tmp_path / "o.onnx")


def test_a_weight_file_that_was_cut_short_in_the_meantime(tmp_path: Path) -> None:
    onnx.save(words(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    graph = OnnxGraph(load_model(tmp_path / "m.onnx"))
    (tmp_path / "w.bin").write_bytes(b"1234")
    linear = next(op for op in graph.ops if op.kind is Kind.LINEAR)
    with pytest.raises(ToastcError, match=r"w\.bin: too short for weight up"):
        graph.constant(linear.inputs[1])


@contextmanager
def no_files() -> Iterator[None]:
    """Nothing can be opened: too many files are open already."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_system_that_opens_no_file(tmp_path: Path) -> None:
    path = saved(words(), tmp_path)
    load_model(path)  # and with it all modules that this takes
    for read in (lambda: load_model(path), lambda: fingerprint([path], path)):
        with pytest.raises(ToastcError, match=r"model\.onnx: can not be read \(Too many open files\)"), no_files():
            read()
