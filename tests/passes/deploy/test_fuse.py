"""Fused nodes say the same, whatever wrote the graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from conftest import ZooFile
from models import kinds

import toastc
from toastc import api
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.graphs.onnx.builder import OnnxBuilder
from toastc.passes.deploy.fuse import fuse_attention
from toastc.system.errors import VerificationFailed

RATIOS = {"attention": {"qk": 0.5, "vo": 0.25}, "ffn": 0.5, "round_to": 1}


EXPORTERS = ("dynamo20-dyn", "dynamo23-dyn", "ts17-dyn", "ort-dyn")
MODELS = {"swin_tiny": "dynamo20-dyn", "swinv2_tiny": "ts17-dyn", "xcit_tiny": "ts17-dyn", "eva02_tiny": "dynamo20-dyn",
          "torch_encoder": "dynamo24", "beit_base": "ts17-dyn"}  # fmt: skip
CASES = [*(("deit_tiny", exporter) for exporter in EXPORTERS), *MODELS.items()]


@pytest.mark.parametrize(("name", "variant"), CASES, ids=lambda x: x)
def test_every_attention_becomes_one_node_before_and_after_pruning(
    name: str, variant: str, zoo_file: ZooFile, tmp_path: Path
) -> None:
    dense = zoo_file(name, variant)
    whole, pruned = (tmp_path / f"{n}.onnx" for n in ("whole", "pruned"))
    before = toastc.prune(dense, runtime="ort-cuda", output=whole).report
    after = toastc.prune(dense, RATIOS, recipe="magnitude", runtime="ort-cuda", output=pruned).report
    assert before.deployed is not None and after.deployed is not None and after.verified is not None
    assert kinds(whole)["Softmax"] == kinds(pruned)["Softmax"] == 0, before.notes
    assert kinds(whole)["MultiHeadAttention"] == kinds(pruned)["MultiHeadAttention"] == before.deployed["attentions"] > 0
    assert before.deployed["attentions"] == after.deployed["attentions"]
    assert max(before.deployed["worst"], after.deployed["worst"]) < 1e-5
    assert pruned.stat().st_size < whole.stat().st_size


def test_rows_are_split_and_never_moved(deit: Path) -> None:
    graph, fused = fuse_attention(OnnxGraph(load_model(deit)))
    found = Counter(op.type for op in graph.ops)
    assert fused.count == 2 and fused.left == ()
    assert found["Split"] == 2 and found["Transpose"] == 1  # that of the patches


def test_norms_and_activations_are_fused_too(deit: Path, tmp_path: Path) -> None:
    toastc.prune(deit, runtime="ort-cuda", output=tmp_path / "o.onnx")
    found = kinds(tmp_path / "o.onnx")
    assert found["SkipLayerNormalization"] == 4 and found["BiasGelu"] == 2


def test_what_is_fused_is_read_again(deit: Path, tmp_path: Path) -> None:
    toastc.prune(deit, RATIOS, recipe="magnitude", runtime="ort-cpu", output=tmp_path / "o.onnx")
    assert api.verify(deit, tmp_path / "o.onnx")["ok"]
    again = toastc.prune(tmp_path / "o.onnx", 0.5, output=tmp_path / "again.onnx").report
    assert again.verified is not None and again.verified["ok"] and again.after.macs < again.before.macs


def test_a_wrong_fusion_is_found_and_nothing_is_written(deit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = OnnxBuilder.attend
    monkeypatch.setattr(OnnxBuilder, "attend", lambda self, qkv, bias, heads, scale: right(self, qkv, bias, heads, 2 * scale))
    with pytest.raises(VerificationFailed, match="nothing was written"):
        toastc.prune(deit, runtime="ort-cpu", output=tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()


def test_a_mask_of_booleans_is_left_alone_and_named(zoo_file: ZooFile, tmp_path: Path) -> None:
    dense = zoo_file("toy_mqa")
    report = toastc.prune(dense, runtime="ort-cpu", output=tmp_path / "o.onnx").report
    assert any("shared between queries and keys" in note for note in report.notes)
