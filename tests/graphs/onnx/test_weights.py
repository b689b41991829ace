"""Where weights are in memory."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx
import onnx_ir as ir

from toastc.graphs.onnx import read_model
from toastc.graphs.onnx.weights import tensors_of, without_weights


def test_no_weight_keeps_the_message_it_was_read_from(tmp_path: Path) -> None:
    """A part of a message keeps all of it in memory, beside the arrays that are made of it."""
    proto = models.vit()
    constant = onnx.numpy_helper.from_array(np.arange(3.0), "three")
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["three"], value=constant))
    model = read_model(models.save(proto, tmp_path / "model.onnx"))
    tensors = {tensor.name: tensor for tensor in tensors_of(model)}
    expected = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in (*proto.graph.initializer, constant)}
    assert tensors.keys() == expected.keys() and not any(isinstance(t, ir.TensorProtoTensor) for t in tensors.values())
    assert all(np.array_equal(tensors[name].numpy(), array) for name, array in expected.items())


def test_a_model_without_its_weights_shares_their_memory(tmp_path: Path) -> None:
    model = read_model(models.save(models.vit(), tmp_path / "model.onnx"))
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    proto, weights = without_weights(model)
    assert weights and sum(len(t.raw_data) for t in proto.graph.initializer) < sum(w.nbytes for w in weights.values()) / 4
    for name, array in weights.items():
        assert np.shares_memory(array, before[name].numpy())
    assert all(value.const_value is before[name] for name, value in model.graph.initializers.items())
