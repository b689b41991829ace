"""Tokens merged by a choice made at run time: the most alike columns or rows, and ToMe; image by image, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from merging import HEIGHT, WIDTH, Dense, file, images, model, spell  # noqa: F401
from models import run_file
from torch import Tensor
from zoo_exports import quiet

import toastc
from toastc.plans.merges import Merge, parse_merges
from toastc.plans.plan import Plan
from toastc.system.errors import ToastcError

torch.set_num_threads(1)
Spec = list[dict[str, Any]]
SPECS: dict[str, Spec] = {
    "h1:2": [{"before": "1", "merge": "horizontal", "pairs": 2}],
    "v1:1+h2:3": [
        {"before": "1", "merge": "vertical", "pairs": 1},
        {"before": "2", "merge": "horizontal", "pairs": 3, "rule": "weighted"},
    ],
    "h1:4+v2+h3": [
        {"before": "1", "merge": "horizontal", "pairs": 4},
        {"before": "2", "merge": "vertical", "rule": "weighted"},
        {"before": "3", "merge": "horizontal"},
    ],
    "h1+v2:2": [{"before": "1", "merge": "horizontal"}, {"before": "2", "merge": "vertical", "pairs": 2, "rule": "weighted"}],
    "t:7": [{"before": "*", "merge": "bipartite", "pairs": 7}],
    "h1+t2:5": [{"before": "1", "merge": "horizontal"}, {"before": "2", "merge": "bipartite", "pairs": 5}],
}  # fmt: skip


# ---- by hand: one image, groups of patches ---------------------------------------------------------------


def forward(vit: Any, x: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    """Logits, and the sequence with every patch given the token it has become part of."""
    made = [one(vit, image[None], spec) for image in x]
    return torch.cat([a for a, _ in made]), torch.cat([b for _, b in made])


def one(vit: Any, x: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    aside = vit.num_prefix_tokens
    y = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))[0]
    groups = [[i] for i in range(len(y))]  # which patches each token stands for
    height, width = HEIGHT, WIDTH
    for number, block in enumerate(vit.blocks):
        for step in [s for s in spec if s["merge"] != "bipartite" and int(s["before"]) == number]:
            lines = [[aside + r * width + c for r in range(height)] for c in range(width)]
            if step["merge"] == "vertical":
                lines = [[aside + r * width + c for c in range(width)] for r in range(height)]
            pairs = [(i, i + 1) for i in range(0, len(lines) - 1, 2)]
            if "pairs" in step:
                rows = [(y[lines[i]], y[lines[j]]) for i, j in pairs]
                alike = [float(torch.cosine_similarity(a, b, 1).sum()) for a, b in rows]
                pairs = [pairs[n] for n in np.argsort(alike)[::-1][: step["pairs"]]]
            gone = {j: i for i, j in pairs}
            joined = {b: a for j, i in gone.items() for a, b in zip(lines[i], lines[j], strict=True)}
            y, groups = joined_tokens(y, groups, joined, step.get("rule", "mean"))
            height, width = (height, width - len(gone)) if step["merge"] == "horizontal" else (height - len(gone), width)
        attn, z = block.attn, block.norm1(y[None])
        q, k, v = attn.qkv(z).reshape(1, len(y), 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        sizes = torch.tensor([float(len(g)) for g in groups])
        logits = attn.scale * q @ k.transpose(-2, -1) + sizes.log()
        y = y + attn.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(z.shape))[0]
        for step in [s for s in spec if s["merge"] == "bipartite" and s["before"] in ("*", str(number))]:
            metric = torch.nn.functional.normalize(k[0].mean(0), dim=1)
            first = [i for i in range(aside, len(y)) if i % 2 == 0]
            second = [i for i in range(aside, len(y)) if i % 2 == 1]
            found = [max((float(metric[i] @ metric[j]), j, i) for j in second) for i in first]
            best = sorted(found, reverse=True)[: min(step["pairs"], (len(y) - aside) // 2)]
            y, groups = joined_tokens(y, groups, {i: j for _, j, i in best}, "weighted")
        y = y + block.mlp(block.norm2(y[None]))[0]
    whole = torch.empty(vit.num_prefix_tokens + HEIGHT * WIDTH, y.shape[1])
    for token, members in zip(vit.norm(y[None])[0], groups, strict=True):
        whole[members] = token
    return vit.forward_head(vit.norm(y[None])), whole[None]


def joined_tokens(y: Tensor, groups: list[list[int]], joined: dict[int, int], rule: str) -> tuple[Tensor, list[list[int]]]:
    stay = [i for i in range(len(y)) if i not in joined]
    tokens, made = [], []
    for i in stay:
        members = [i, *(j for j, to in joined.items() if to == i)]
        weight = torch.tensor([float(len(groups[m])) if rule == "weighted" else 1.0 for m in members])
        tokens.append((y[members] * weight[:, None]).sum(0) / weight.sum())
        made.append([p for m in members for p in groups[m]])
    return torch.stack(tokens), made


@pytest.mark.parametrize("name", SPECS)
def test_files_choose_as_by_hand(model: Any, file: Path, tmp_path: Path, name: str) -> None:  # noqa: F811
    spec = SPECS[name]
    made = toastc.prune(file, {"tokens": spec}, output=tmp_path / "small.onnx")
    assert made.report.verified is not None and made.report.verified["ok"]
    x = images(3, seed=1)
    with torch.no_grad():
        expected, dense = forward(model, x, spec)[0], model(x)
    scale = expected.abs().max()
    assert (expected - dense).abs().max() > 0.01 * scale, "merging changed nothing"
    assert np.abs(run_file(tmp_path / "small.onnx", x) - expected.numpy()).max() < 1e-4 * scale
    assert made.report.before.macs > made.report.after.macs == toastc.inspect(tmp_path / "small.onnx")["macs"]


@pytest.mark.parametrize("name", SPECS)
def test_modules_choose_as_by_hand(model: Any, name: str) -> None:  # noqa: F811
    spec, x = SPECS[name], images(3, seed=1)
    spell(model, fused=list(SPECS).index(name) % 2 == 0)
    with torch.no_grad(), quiet():
        expected = forward(model, x, spec)[0]
        small = toastc.prune(model, {"tokens": spec}, example_inputs=(images(2),))
        got = small.model(x)
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
    assert small.report.verified is not None and small.report.verified["ok"]
    assert small.report.before.macs > small.report.after.macs


def test_images_choose_for_themselves(file: Path, tmp_path: Path) -> None:  # noqa: F811
    toastc.prune(file, tokens="h1:2,t2:6", output=tmp_path / "small.onnx")
    x = images(6, seed=2)
    together = run_file(tmp_path / "small.onnx", x)
    alone = np.concatenate([run_file(tmp_path / "small.onnx", image[None]) for image in x])
    assert np.abs(together - alone).max() < 1e-4 * np.abs(together).max()


@pytest.mark.parametrize("tokens", ["h1:3", "t:6"])
def test_with_channels_in_one_plan_and_one_proof(model: Any, file: Path, tmp_path: Path, tokens: str) -> None:  # noqa: F811
    """The proof hands the small file's choices to the dense one: both choose the same, whatever rounding does."""
    ratios = {"attention": 0.5, "ffn": 0.5, "round_to": 4, "tokens": [m.to_dict() for m in parse_merges(tokens)]}
    made = toastc.prune(file, ratios, recipe="magnitude", output=tmp_path / "small.onnx", plan_out=tmp_path / "p.safetensors")
    assert made.report.verified is not None and made.report.verified["ok"]
    assert toastc.verify(file, tmp_path / "small.onnx")["ok"]
    assert Plan.load(tmp_path / "p.safetensors").merges == parse_merges(tokens)


@pytest.mark.parametrize("tokens", ["h1:3", "t:6"])
@pytest.mark.parametrize("file", [(23, True)], indirect=True, ids=["attention node"])
def test_modules_and_files_choose_the_same(model: Any, file: Path, tmp_path: Path, tokens: str) -> None:  # noqa: F811
    ratios = {"attention": 0.5, "ffn": 0.5, "round_to": 4, "tokens": [m.to_dict() for m in parse_merges(tokens)]}
    made = toastc.prune(file, ratios, recipe="magnitude", output=tmp_path / "small.onnx")
    with torch.no_grad(), quiet():
        module = toastc.prune(model, ratios, recipe="magnitude", example_inputs=(images(2),))
        x = images(3, seed=3)
        assert np.abs(module.model(x).numpy() - run_file(tmp_path / "small.onnx", x)).max() < 1e-4
        again = toastc.inspect(module.model, example_inputs=(images(2),))["macs"]
    assert made.report.after.macs == module.report.after.macs == again
    assert module.report.verified is not None and module.report.verified["ok"]


@pytest.mark.parametrize("name", ["h1:4+v2+h3", "t:7"])
def test_dense_heads_and_sequences_get_every_patch_back(model: Any, tmp_path: Path, name: str) -> None:  # noqa: F811
    dense, x = Dense(model).eval(), images(2, seed=4)
    with torch.no_grad(), quiet():
        torch.onnx.export(
            dense, (images(2),), tmp_path / "dense.onnx", dynamo=False, opset_version=17, verbose=False, input_names=["image"],
            dynamic_axes={"image": {0: "batch"}},
        )  # fmt: skip
        toastc.prune(tmp_path / "dense.onnx", {"tokens": SPECS[name]}, output=tmp_path / "small.onnx")
        whole = forward(model, x, SPECS[name])[1]
        grid = whole[:, model.num_prefix_tokens :].transpose(1, 2).reshape(-1, 48, HEIGHT, WIDTH)
        expected = [dense.head(grid), whole]
        module = toastc.prune(dense, {"tokens": SPECS[name]}, example_inputs=(images(2),)).model(x)
    import onnxruntime

    got = onnxruntime.InferenceSession(str(tmp_path / "small.onnx")).run(None, {"image": x.numpy()})
    for a, b, c in zip(expected, got, module, strict=True):
        assert np.abs(b - a.numpy()).max() < 1e-4 * a.abs().max()
        assert (c - a).abs().max() < 1e-4 * a.abs().max()


def test_compiled_for_any_batch(model: Any) -> None:  # noqa: F811
    """Attention that is spelt out; whole ones are in test_merge.py."""
    torch._dynamo.reset()
    spell(model, False)
    ratios = {"attention": 0.25, "tokens": [m.to_dict() for m in parse_merges("h1:2,t2:5")]}
    options = {"ratios": ratios, "recipe": "magnitude", "then": "eager"}
    compiled = torch.compile(model, backend=toastc.backend, options=options, dynamic=True)
    with torch.no_grad(), quiet():
        small = toastc.prune(model, ratios, recipe="magnitude", example_inputs=(images(2),)).model
        for count in (2, 5):
            x = images(count, seed=count)
            assert (compiled(x) - small(x)).abs().max() < 1e-4 * small(x).abs().max()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("h1:5", "4 pairs of columns, not 5"),
        ("t1:3,h2", "no grid any more"),
        ("h1:0", "pairs is a number"),
        ([{"before": "1", "merge": "bipartite"}], "must be given"),
        ([{"before": "*", "merge": "vertical", "pairs": 1}], "only bipartite"),
        ("t9:3", "there are 4"),
    ],
)
def test_what_can_not_be_chosen_is_said(file: Path, tokens: Any, message: str) -> None:  # noqa: F811
    with pytest.raises(ToastcError, match=message):
        toastc.prune(
            file, {"tokens": tokens} if isinstance(tokens, list) else {}, tokens=None if isinstance(tokens, list) else tokens
        )
    assert parse_merges("h4:3,t:13") == (Merge("4", "horizontal", pairs=3), Merge("*", "bipartite", "weighted", pairs=13))
