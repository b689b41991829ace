"""Operators that the tables do not know are a row each: added from outside, they are seen through and pruned through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from handwritten import saved
from onnx import numpy_helper
from torch import Tensor, nn

import toastc
from toastc.graphs import Kind
from toastc.graphs.fx.operators import OPERATORS as OF_TORCH
from toastc.graphs.onnx.operators import OPERATORS as OF_ONNX
from toastc.graphs.onnx.operators import OnnxOperator
from toastc.graphs.operators import Operator
from toastc.testing import assert_equivalent

# Two operators of nobody's: halves that change places, and an activation. A model defines them by functions of its own.
FUNCTIONS = """
<domain: "mine", opset_import: ["": 20]> SwapHalves (x) => (y) {
  a, b = Split <axis = -1, num_outputs = 2> (x)  y = Concat <axis = -1> (b, a)
}
<domain: "mine", opset_import: ["": 20]> Bend (x) => (y) { s = Tanh(x)  y = Mul(s, x) }
"""
MODEL = (
    """<ir_version: 10, opset_import: ["": 20, "mine": 1]> g (float[b, 3, 8] x) => (float[b, 3, 8] y) {
  h = MatMul(x, up)  p = Add(h, bias)  a = mine.Bend(p)  s = mine.SwapHalves(a)  t = mine.SwapHalves(s)  y = MatMul(t, down)
}"""
    + FUNCTIONS
)


@pytest.fixture
def rows() -> Iterator[None]:
    """What an extension does: a row for each operator, in each adapter."""

    def swapped(node: Any, x: np.ndarray) -> list[np.ndarray]:
        return [np.concatenate(np.split(x, 2, axis=-1)[::-1], axis=-1)]

    mine: dict[Any, dict[str, Any]] = {
        "onnx": {"mine::SwapHalves": OnnxOperator(Kind.SHAPE, compute=swapped),
                 "mine::Bend": OnnxOperator(Kind.ELEMENTWISE, like_first=True)},
        "torch": {"swap_halves": Operator(Kind.SHAPE), "bend": Operator(Kind.ELEMENTWISE)},
    }  # fmt: skip
    OF_ONNX.update(mine["onnx"])
    OF_TORCH.update(mine["torch"])
    yield
    for table, own in ((OF_ONNX, mine["onnx"]), (OF_TORCH, mine["torch"])):
        for name in own:
            del table[name]


def model_of_its_own(folder: Path) -> Path:
    model: onnx.ModelProto = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    for name, shape in {"up": (8, 16), "bias": (16,), "down": (16, 8)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return saved(model, folder)


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.usefixtures("rows")
def test_a_file_is_pruned_through_operators_of_its_own(tmp_path: Path) -> None:
    dense, out = model_of_its_own(tmp_path), tmp_path / "out.onnx"
    report = toastc.prune(dense, {"ffn": 0.5, "round_to": 2}, recipe="magnitude", output=out).report
    assert report.verified is not None and report.verified["ok"] and report.after.params < report.before.params
    assert "Bend" in kinds(out)  # as it was, and not written out
    assert assert_equivalent(dense, out) < 1e-5


def test_without_rows_they_are_written_out(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    toastc.prune(model_of_its_own(tmp_path), {"ffn": 0.5, "round_to": 2}, recipe="magnitude", output=out)
    assert "Bend" not in kinds(out) and "Tanh" in kinds(out)


@torch.library.custom_op("mine::swap_halves", mutates_args=())
def swap_halves(x: Tensor) -> Tensor:
    return torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1)


@torch.library.custom_op("mine::bend", mutates_args=())
def bend(x: Tensor) -> Tensor:
    return x * x.tanh()


for operator in (swap_halves, bend):
    operator.register_fake(lambda x: torch.empty_like(x))


class Bent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(swap_halves(swap_halves(bend(self.up(x)))))


@pytest.mark.usefixtures("rows")
def test_a_module_is_pruned_through_operators_of_its_own() -> None:
    torch.manual_seed(0)
    args = (torch.randn(2, 3, 8),)
    report = toastc.prune(Bent().eval(), {"ffn": 0.5, "round_to": 2}, recipe="magnitude", example_inputs=args).report
    assert report.verified is not None and report.verified["ok"] and report.after.params < report.before.params


def test_without_rows_a_module_stays_whole() -> None:
    with pytest.raises(toastc.ToastcError, match="no attention and no FFN"):
        toastc.prune(Bent().eval(), {"ffn": 0.5}, recipe="magnitude", example_inputs=(torch.randn(2, 3, 8),))
