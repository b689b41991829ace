"""Detectors and segmenters: their backbones are pruned as one graph, and what stands behind them sees the same shapes."""

from __future__ import annotations

import copy
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from oracle import interface
from torch import Tensor, nn
from torch.export import Dim
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from zoo_downstream import VitMap, mask_rcnn
from zoo_exports import make_variant, outputs_of, quiet
from zoo_family import randomize
from zoo_models import FAMILIES

import toastc
from toastc.testing import assert_equivalent

torch.set_num_threads(1)

RATIOS = {"attention": {"qk": 0.5, "vo": 0.5}, "ffn": 0.5, "round_to": 4}
HEADS = re.compile(r"predictor|classifier|embedder")  # small networks that end in boxes, classes or masks
PAGE = Path(__file__).resolve().parents[2] / "docs" / "downstream.md"


class Expected(NamedTuple):
    """Attentions and FFNs found in the backbone (the modules under `path`) and behind it, and what is rejected, by reason."""

    path: str
    backbone: tuple[int, int]
    behind: tuple[int, int] = (0, 0)
    rejects: dict[str, int] = {}


EXPECTED = {
    "timm_swin_fpn": Expected("backbone.body.", (4, 4), (0, 1)),
    "timm_vit_boxes": Expected(
        "backbone.body.", (2, 2), (0, 0),
        {"mlp: layer_norm mixes its channels": 1, "mlp: its channels are used 6 times: conv2d, conv2d, conv2d, ...": 1},
    ),
    "hf_detr": Expected("inner.model.backbone.", (4, 4), (6, 4)),
    "hf_yolos": Expected("inner.vit.", (2, 2)),
    "hf_segformer": Expected("inner.segformer.", (2, 2), (0, 1)),
    "hf_upernet_swin": Expected(
        "inner.backbone.", (4, 4), (0, 1),
        {"inner: pad is not understood": 1, "decode_head: its channels are used 4 times: conv2d, conv2d, conv2d, ...": 1,
         "decode_head: its channels do not meet conv2d one by one": 1},
    ),
    "hf_mask2former_swin": Expected(
        "inner.model.pixel_level_module.encoder.", (4, 4), (4, 4),
        {"self_attn: mul combines it with a tensor no linear makes": 2, "decoder: group_norm is not understood": 1},
    ),
}  # fmt: skip


def found(report: Any, path: str) -> tuple[tuple[int, int], tuple[int, int], dict[str, int]]:
    """What `Expected` holds. Nodes go by what they are, rejects of the networks in HEADS are left out."""
    kinds = {c.site: "ffn" if c.coupling == "hidden" else "attention" for c in report.couplings if not HEADS.search(c.site)}
    inside, outside = (Counter(k for s, k in kinds.items() if s.startswith(path) is here) for here in (True, False))
    reasons = [(r.node, re.sub(r"_?\d* \(\w+\)", "", r.reason)) for r in report.rejects if not HEADS.search(r.node)]
    rejects = Counter(f"{node.rpartition('.')[2]}: {why}" for node, why in reasons if not node.endswith(".heads"))
    return (inside["attention"], inside["ffn"]), (outside["attention"], outside["ffn"]), dict(rejects)


def look(x: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(x.shape), x.dtype


@pytest.mark.parametrize("name", EXPECTED)
def test_the_whole_model_is_pruned_as_one_graph(name: str) -> None:
    family, expected = FAMILIES[name], EXPECTED[name]
    model, sample, other = family.small(), family.inputs(False, 2), family.inputs(False, 3)
    with quiet():
        result = toastc.prune(model, RATIOS, recipe="magnitude", example_inputs=tuple(sample.values()))
    report = result.report
    assert found(report, expected.path) == (expected.backbone, expected.behind, expected.rejects)
    assert report.verified["ok"] and report.verified["inputs"] == 2 and report.verified["error"] <= 1e-5
    assert report.after.macs < 0.95 * report.before.macs and report.after.params < report.before.params
    dense, small = outputs_of(model, other), outputs_of(result.model, other)
    assert list(map(look, small)) == list(map(look, dense))
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(small, dense, strict=True)), "half of it is gone and nothing changed"


def test_a_changed_weight_is_noticed() -> None:
    family = FAMILIES["timm_vit_boxes"]
    model, args = family.small(), tuple(family.inputs(False, 2).values())
    with quiet():
        small = toastc.prune(model, RATIOS, recipe="magnitude", example_inputs=args).model
        assert assert_equivalent(model, small, example_inputs=args) <= 1e-5
        small.get_parameter("backbone.body.model.blocks.0.mlp.fc2.weight").mul_(1.01)
        with pytest.raises(AssertionError, match="not equivalent"):
            assert_equivalent(model, small, example_inputs=args)


def test_a_file_of_a_whole_detector(tmp_path: Path) -> None:
    """Mask R-CNN, proposals, suppression and masks in one file. Files of the others: tools/zoo.py."""
    family = FAMILIES["tv_maskrcnn_swin"]
    dense, small = tmp_path / "tv_maskrcnn_swin.ts17.onnx", tmp_path / "small.onnx"
    with quiet():
        model = family.small()
        assert make_variant(family, model, "ts17", tmp_path) <= 1e-4, "the exporter broke the model"
        report = toastc.prune(dense, RATIOS, recipe="magnitude", output=small).report
    inside, outside, why = found(report, "")
    assert (inside, outside) == (family.sites[0], (0, 0))
    words = ("its channels are used 4 times", "takes its sizes at run time", "whose shape is only known at run time")
    assert sorted(word for word in words for reason in why if word in reason) == sorted(words) and len(why) == len(words)
    assert report.verified is not None and report.verified["ok"] and report.verified["error"] <= 1e-5
    assert report.after.macs < report.before.macs
    assert interface(small) == interface(dense)
    feed = {key: x.numpy() for key, x in family.inputs(False, 1).items()}
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    ran = [ort.InferenceSession(path, options).run(None, feed) for path in (dense, small)]
    assert [(x.shape, x.dtype) for x in ran[1]] == [(x.shape, x.dtype) for x in ran[0]]
    assert len(onnx.load(small).graph.output) == len(ran[0])


def faster_rcnn() -> FasterRCNN:
    """torchvision's, around a plain ViT with one map."""
    anchors, pool = AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),)), MultiScaleRoIAlign(["0"], 7, 2)
    return FasterRCNN(VitMap(False), num_classes=4, min_size=64, max_size=64, rpn_anchor_generator=anchors, box_roi_pool=pool,
                      box_score_thresh=0.0, box_detections_per_img=10, rpn_pre_nms_top_n_test=100)  # fmt: skip


@pytest.mark.parametrize("kind", ["mask_rcnn_swin", "faster_rcnn_vit"])
def test_a_backbone_is_pruned_inside_its_detector(kind: str) -> None:
    """One for a fixed size of images, one that leaves the sizes free, as torchvision's resizing wants it. Both train."""
    torch.manual_seed(0)
    free = kind == "faster_rcnn_vit"
    dense: Any = randomize(faster_rcnn() if free else mask_rcnn(False))
    sizes = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO} if free else {0: Dim.AUTO}
    with quiet():
        images = torch.randn(2, 3, 64, 96 if free else 64)
        program = torch.export.export(dense.backbone, (images,), dynamic_shapes=(sizes,), strict=False)
        result = toastc.prune(program, RATIOS, recipe="magnitude")
    report, small = result.report, copy.deepcopy(dense)
    found_sites, rejects = {c.site for c in report.couplings}, [r for r in report.rejects if not r.node.endswith(".heads")]
    assert (len(found_sites), rejects) == (4 if free else 8, [])
    assert report.verified["ok"] and report.after.macs < report.before.macs
    small.backbone = result.model
    for size in (64, 96) if free else (64,):
        for model in (dense, small):
            model.transform.min_size, model.transform.max_size = (size,), size
        pictures = [torch.rand(3, size, size), torch.rand(3, size, size // 2)]
        with quiet():
            before, after = dense.eval()(pictures), small.eval()(pictures)
        assert [{k: look(x) for k, x in one.items()} for one in after] == [{k: look(x) for k, x in one.items()} for one in before]
        assert all((a["scores"] - b["scores"]).abs().max() > 1e-4 for a, b in zip(after, before, strict=True))
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, size, size, dtype=torch.uint8)
    losses = small.train()([pictures[0]], [target])
    sum(losses.values()).backward()
    assert small.backbone.training and all(p.grad is not None for p in small.backbone.parameters())


@pytest.mark.parametrize("number", range(3))
def test_what_the_page_shows_runs(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)[number]
    names: dict[str, Any] = {"torch": torch, "toastc": toastc, "pixels": torch.randn(2, 3, 32, 32)}
    with quiet():
        names |= {"detector": faster_rcnn().eval(), "segformer": FAMILIES["hf_segformer"].small().inner}
        create = timm.create_model

        def tiny(name: str, pretrained: bool, **options: Any) -> nn.Module:
            assert name in timm.list_models() and pretrained
            return create(name, **options, window_size=4, embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 4, 4, 4))

        monkeypatch.setattr(timm, "create_model", tiny)
        exec(code, names)
        assert names["detector"]([torch.rand(3, 240, 320)])[0]["boxes"].shape[1] == 4
    assert ("Backbone" in names) is (number == 0)
    assert "result" not in names or names["result"].report.verified["ok"]
    assert "logits" not in names or names["logits"].shape == (2, 5, 8, 8)
