"""ToaSt's pieces, each against a few lines of numpy or torch that say the same: docs/toast.md."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from models import run_file
from zoo_exports import quiet

import toastc
from toastc.compiler.sources import open_graph
from toastc.passes import FoldBiases, MatchSites, PlanRatios, ScoreTokens, ScoreWeights, ShareScores
from toastc.passes.match import match
from toastc.passes.score.sampling import sampled
from toastc.passes.score.weights import distance_to_median
from toastc.passes.state import State, run
from toastc.passes.tokens.layout import leading_tokens
from toastc.plans.plan import Keep, Plan, Select, from_dict
from toastc.plans.ratios import parse
from toastc.plans.schedules import schedule, schedules
from toastc.system.errors import ToastcError

torch.set_num_threads(1)
SIDE, BLOCKS, WIDTH, HEADS = 32, 3, 48, 3
RATIOS = {"ffn": {"hidden": 0.5, "inputs": 0.25}, "round_to": 1}


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    made = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIDE, patch_size=8, depth=BLOCKS, embed_dim=WIDTH, num_heads=HEADS, num_classes=7
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return made.eval()


@pytest.fixture(scope="module")
def file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toast") / "dense.onnx"
    with quiet():
        torch.onnx.export(
            model, (images(2),), path, dynamo=False, opset_version=17, verbose=False, input_names=["image"],
            dynamic_axes={"image": {0: "batch"}},
        )  # fmt: skip
    return path


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


# ---- what the dynamic forms compute, said in torch -----------------------------------------------------------


@contextlib.contextmanager
def selecting(model: Any, plan: Plan) -> Iterator[Any]:
    """The dense model in which channels that a plan's selections would not read are zeroed by hooks."""
    model, attended, hooks = copy.deepcopy(model), {}, []
    for number, block in enumerate(model.blocks):
        block.attn.fused_attn = False

        def attend(_: Any, given: Any, made: torch.Tensor, number: int = number) -> None:
            attended[number] = made[:, :, 0].mean(dim=1)

        def masked(module: Any, given: Any, choice: Select, number: int) -> Any:
            x = given[0]
            size = x.abs()[:, choice.tokens.tolist()]
            score = size.mean(dim=1)
            if choice.guided:
                seen = attended[number][:, choice.tokens.tolist(), None]
                score = choice.weights[0] * x[:, 0].abs() + choice.weights[1] * (seen * size).mean(dim=1)
            if choice.per == "batch":
                score = score.mean(dim=0, keepdim=True).expand_as(score)
            mask = torch.zeros_like(score).scatter_(1, score.topk(choice.width).indices, 1.0)
            return (x * mask[:, None],)

        block.attn.attn_drop = torch.nn.Identity()
        block.attn.softmax_seen = block.attn.attn_drop.register_forward_hook(attend)
        for name, linear in (("inputs", block.mlp.fc1), ("hidden", block.mlp.fc2)):
            choice = plan.get(f"blocks.{number}.mlp", name)
            if choice is not None:
                hooks.append(
                    linear.register_forward_pre_hook(lambda m, x, c=choice, n=number: masked(m, x, c, n))  # type: ignore[misc]
                )
    yield model


@pytest.mark.parametrize("per", ["image", "batch"])
@pytest.mark.parametrize("guide", ["auto", "no"])
def test_what_is_chosen_at_run_time_is_what_the_formula_says(
    model: Any, file: Path, tmp_path: Path, per: str, guide: str
) -> None:
    passes = f"plan-selections{{per={per},guide={guide},sample=0.3}}"
    made = toastc.prune(file, RATIOS, passes=passes, output=tmp_path / "small.onnx")
    assert made.report.verified is not None
    assert made.report.verified["ok"]
    assert sum(isinstance(c, Select) and c.guided == (guide == "auto") for c in made.plan.choices.values()) == 2 * BLOCKS
    small = toastc.prune(model, RATIOS, passes=passes, example_inputs=(images(2),)).model
    x = images(5, seed=1)
    with torch.no_grad(), selecting(model, made.plan) as masked:
        expected, dense = masked(x), model(x)
        scale = expected.abs().max()
        assert (expected - dense).abs().max() > 0.01 * scale, "nothing was left unread"
        assert (small(x) - expected).abs().max() < 1e-4 * scale
    assert np.abs(run_file(tmp_path / "small.onnx", x) - expected.numpy()).max() < 1e-4 * scale


def test_an_image_alone_and_the_company_it_keeps(file: Path, tmp_path: Path) -> None:
    x = images(6, seed=2)
    for recipe, alone in (("toast-image", True), ("toast-batch", False)):
        made = toastc.prune(file, RATIOS | {"attention": 0.5}, recipe=recipe, output=tmp_path / f"{recipe}.onnx")
        assert any("beside it" in note for note in made.report.notes) is not alone
        together = run_file(tmp_path / f"{recipe}.onnx", x)
        apart = np.concatenate([run_file(tmp_path / f"{recipe}.onnx", x[i : i + 1]) for i in range(6)])
        same = np.abs(together - apart).max() < 1e-5 * np.abs(apart).max()
        assert same == alone
        assert np.array_equal(together, run_file(tmp_path / f"{recipe}.onnx", x)), "the same call gives the same numbers"


def test_only_onnx_operators_and_one_seed_one_file(file: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        toastc.prune(file, RATIOS, passes="plan-selections{sample=0.3}", seed=seed, output=tmp_path / f"{name}.onnx")
    assert {node.domain for node in onnx.load(tmp_path / "a.onnx").graph.node} == {""}
    onnx.checker.check_model(onnx.load(tmp_path / "a.onnx"), full_check=True)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert not np.array_equal(run_file(tmp_path / "a.onnx", images(2)), run_file(tmp_path / "c.onnx", images(2)))


def test_masked_residuals_lose_what_fc1_does_not_read(model: Any, file: Path, tmp_path: Path) -> None:
    ratios = {"ffn": {"inputs": 0.25}, "round_to": 1}
    passes = "plan-selections{masks=true,sample=0.3}"
    made = toastc.prune(file, ratios, passes=passes, output=tmp_path / "small.onnx")
    assert made.report.verified is not None
    assert made.report.verified["ok"]
    x = images(3, seed=5)
    copied = copy.deepcopy(model)
    with torch.no_grad(), selecting(copied, made.plan) as masked:
        for block in masked.blocks:  # the pre-hook of fc1 tells what was read; the residual keeps only that
            block.mlp.fc1.register_forward_pre_hook(
                lambda m, x, b=block: setattr(b, "read", (x[0] != 0).any(dim=1, keepdim=True))
            )
            block.forward = lambda x, b=block: later(b, x + b.attn(b.norm1(x)))  # type: ignore[method-assign]
        expected = masked(x)
    got = run_file(tmp_path / "small.onnx", x)
    assert np.abs(got - expected.numpy()).max() < 1e-4 * np.abs(got).max()
    small = toastc.prune(model, ratios, passes=passes, example_inputs=(images(2),)).model
    with torch.no_grad():
        assert (small(x) - expected).abs().max() < 1e-4 * np.abs(got).max()


def later(block: Any, x: torch.Tensor) -> torch.Tensor:
    made = block.mlp(block.norm2(x))
    return x * block.read + made


def test_a_wrong_choice_or_weight_does_not_pass_as_proven(file: Path, tmp_path: Path) -> None:
    toastc.prune(file, RATIOS, recipe="toast-image", output=tmp_path / "small.onnx")
    broken = onnx.load(tmp_path / "small.onnx")
    name = next(i for i in broken.graph.initializer if "fc2.weight" in i.name or i.dims == [4 * WIDTH, WIDTH])
    array = onnx.numpy_helper.to_array(name).copy()
    array[0] += 1
    name.CopyFrom(onnx.numpy_helper.from_array(array, name.name))
    onnx.save(broken, tmp_path / "broken.onnx")
    assert toastc.verify(file, tmp_path / "small.onnx")["ok"]
    assert not toastc.verify(file, tmp_path / "broken.onnx")["ok"]


def test_compiled_without_graph_breaks_for_any_batch(model: Any) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    options = {"ratios": RATIOS, "recipe": "toast-image", "then": "eager"}
    compiled = torch.compile(model, backend=toastc.backend, options=options, fullgraph=True, dynamic=True)
    small = toastc.prune(model, RATIOS, recipe="toast-image", example_inputs=(images(2),)).model
    with torch.no_grad():
        for count in (2, 5, 3):
            x = images(count, seed=count)
            assert (compiled(x) - small(x)).abs().max() < 1e-4 * small(x).abs().max()
    assert not counters["graph_break"]


def test_selections_are_saved_and_replayed(file: Path, tmp_path: Path) -> None:
    made = toastc.prune(file, RATIOS, recipe="toast-image", output=tmp_path / "a.onnx", plan_out=tmp_path / "plan.safetensors")
    toastc.prune(file, plan=tmp_path / "plan.safetensors", output=tmp_path / "b.onnx")
    assert np.array_equal(run_file(tmp_path / "a.onnx", images(2)), run_file(tmp_path / "b.onnx", images(2)))
    assert from_dict(made.plan.to_dict()).to_dict() == made.plan.to_dict()


@pytest.mark.parametrize("recipe", ["toast", "toast-image", "toast-batch"])
def test_a_target_is_met_and_counted_as_it_is_computed(file: Path, tmp_path: Path, recipe: str) -> None:
    data = images(8).numpy() if recipe == "toast" else None
    made = toastc.prune(file, target="macs=0.8", recipe=recipe, data=data, output=tmp_path / "small.onnx")
    assert made.report.after.macs <= 0.8 * made.report.before.macs
    assert toastc.inspect(tmp_path / "small.onnx")["macs"] == made.report.after.macs
    kept = {c.site: c.kept for c in made.report.couplings if c.coupling == "hidden"}
    assert kept["blocks.0.mlp"] == 4 * WIDTH, "the first block stays whole"
    assert kept["blocks.1.mlp"] < 4 * WIDTH


# ---- static scores -------------------------------------------------------------------------------------------


def test_static_scores_are_the_papers_sums(model: Any, file: Path) -> None:
    x = images(6, seed=7)
    seen: dict[str, torch.Tensor] = {}
    copied = copy.deepcopy(model)
    for number, block in enumerate(copied.blocks):
        block.attn.fused_attn = False
        block.attn.attn_drop = torch.nn.Identity()
        block.attn.attn_drop.register_forward_hook(lambda m, i, o, n=number: seen.__setitem__(f"a{n}", o[:, :, 0].mean(dim=1)))
        block.mlp.fc2.register_forward_pre_hook(lambda m, i, n=number: seen.__setitem__(f"x{n}", i[0].abs()))
    with torch.no_grad():
        copied(x)
    data = {"image": x.numpy()}
    for graph in (open_file(file), open_graph(model, (images(2),))):
        name = next(iter(graph.input_sizes()))
        from toastc.calibration import open_data

        given = open_data([{name: data["image"]}], graph.input_sizes())
        state = State(graph, parse({"ffn": 0.5}), data=given)
        state, _ = run([MatchSites(), ScoreTokens(sample=1.0, deepest=1.0)], state)
        for number in range(BLOCKS):
            size = seen[f"x{number}"]
            expected = 2 * size[:, 0] + (seen[f"a{number}"][:, 1:, None] * size[:, 1:]).mean(dim=1)
            got = state.scores[f"blocks.{number}.mlp.hidden"][0]
            assert np.allclose(got, expected.sum(dim=0), rtol=1e-4)


def open_file(path: Path) -> Any:
    from toastc.graphs.onnx import OnnxGraph, load_model

    return OnnxGraph(load_model(path))


def test_samples_are_drawn_once_without_repeats_and_grow() -> None:
    drawn = sampled(17, 1, 0.5, [0])
    assert len(set(drawn.tolist())) == 8
    assert drawn.min() >= 1
    assert drawn.max() <= 16
    assert len(sampled(17, 1, 1e-9, [0])) == 1


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("vit_tiny_patch16_224", {}, 1),
        ("deit_tiny_distilled_patch16_224", {}, 2),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}, 5),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}, 0),
    ],
)
def test_class_tokens_are_found_where_they_are(name: str, options: dict[str, Any], count: int) -> None:
    sizes = {"img_size": SIDE, "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
    made = timm.create_model(name, **sizes, **options).eval()
    assert leading_tokens(open_graph(made, (images(2),))) == count


# ---- attention -----------------------------------------------------------------------------------------------


def scored(model: Any, *passes: Any) -> State:
    graph = open_graph(model, (images(2),))
    return run([MatchSites(), *passes], State(graph, parse({"attention": 0.5, "round_to": 1})))[0]


def test_scores_of_queries_keys_and_their_mean(model: Any) -> None:
    dim = WIDTH // HEADS
    weight, bias = model.blocks[1].attn.qkv.weight.detach(), model.blocks[1].attn.qkv.bias.detach()
    q, k = (
        torch.cat([weight, bias[:, None]], dim=1)[i * WIDTH : (i + 1) * WIDTH].reshape(HEADS, dim, -1).numpy() for i in (0, 1)
    )
    expected = {side: np.stack([distance_to_median(head, "weiszfeld") for head in own]) for side, own in (("q", q), ("k", k))}
    expected["average"] = (expected["q"] + expected["k"]) / 2
    expected["joint"] = np.stack(
        [distance_to_median(np.concatenate(pair, axis=1), "weiszfeld") for pair in zip(q, k, strict=True)]
    )
    for way, wanted in expected.items():
        got = scored(model, ScoreWeights(by="geometric-median", qk=way)).scores["blocks.1.attn.qk"]
        assert np.allclose(got, wanted, rtol=1e-4), way


def test_one_shared_set_for_queries_and_values(model: Any) -> None:
    apart = scored(model, ScoreWeights(by="geometric-median"), PlanRatios()).plan
    shared = scored(model, ScoreWeights(by="geometric-median"), ShareScores(), PlanRatios()).plan

    def same(plan: Plan) -> bool:
        return all(
            np.array_equal(plan.choices[f"blocks.{i}.attn.qk"].index, plan.choices[f"blocks.{i}.attn.vo"].index)
            for i in range(BLOCKS)
        )

    assert same(shared)
    assert not same(apart)


def test_random_scores_follow_the_seed_and_nothing_else(model: Any) -> None:
    one, two = (scored(model, ScoreWeights(by="random")).scores for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["blocks.0.attn.qk"], one["blocks.1.attn.qk"])


def loud(weight: torch.Tensor) -> np.ndarray:
    """Positions of the value channels whose weights are not zero, head by head."""
    sizes = weight.detach()[2 * WIDTH :].abs().sum(dim=1).reshape(HEADS, -1).numpy()
    return np.stack([np.flatnonzero(row) for row in sizes])


def test_biases_of_removed_values_are_not_lost(model: Any) -> None:
    """Half of the value channels are nothing but a bias: without them, and with their biases folded, nothing changes."""
    model = copy.deepcopy(model)
    rng, dim = np.random.default_rng(0), WIDTH // HEADS
    with torch.no_grad():
        for block in model.blocks:
            for head in range(HEADS):
                rows = 2 * WIDTH + head * dim + rng.choice(dim, dim // 2, replace=False)
                block.attn.qkv.weight[rows] = 0
                block.attn.qkv.bias[rows] = 1 + torch.rand(len(rows))
    ratios = {"attention": {"vo": 0.5}, "round_to": 1}
    keeps = {f"blocks.{i}.attn.vo": Keep(loud(block.attn.qkv.weight)) for i, block in enumerate(model.blocks)}
    state, _ = run([MatchSites()], State(open_graph(model, (images(2),)), parse(ratios)))
    folded = FoldBiases()(State(state.graph, sites=state.sites, plan=Plan(keeps))).plan
    x = images(4, seed=9)
    with torch.no_grad():
        dense = model(x)
        with_bias, without = (
            toastc.prune(model, plan=plan, example_inputs=(images(2),)).model(x) for plan in (folded, Plan(keeps))
        )
    assert (with_bias - dense).abs().max() < 1e-5 * dense.abs().max()
    assert (without - dense).abs().max() > 1e-2 * dense.abs().max()


def test_the_first_block_of_the_model_or_of_every_stage_stays_whole() -> None:
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, depths=(2, 2), embed_dim=16, num_heads=(2, 4), window_size=7
    ).eval()
    graph = open_graph(swin, (torch.randn(2, 3, 56, 56),))
    whole = {}
    for which in ("first", "stages"):
        state = MatchSites(spare=which)(State(graph))
        whole[which] = [s.name for s in state.sites if not any(c.prunable for c in s.couplings)]
    first = ["layers.0.blocks.0.attn", "layers.0.blocks.0.mlp"]
    assert whole == {"first": first, "stages": [*first, "layers.1.blocks.0.attn", "layers.1.blocks.0.mlp"]}


# ---- schedules -----------------------------------------------------------------------------------------------


def test_nine_models_twenty_points() -> None:
    known = schedules()
    assert len(known) == 9
    assert sum(map(len, known.values())) == 20


def test_schedules_cost_what_was_recounted() -> None:
    """`tools/toast_schedule.py --table` does this for all nine."""
    name = "swin_tiny_patch4_window7_224"
    small = timm.create_model(name, num_classes=1000).eval()
    for point, own in schedules()[name].items():
        made = toastc.prune(small, own.ratios(), passes="score-weights{of=attention},plan-ratios{of=attention},plan-selections",
                            dry_run=True)  # fmt: skip
        assert made.report.before.macs / 1e9 == pytest.approx(own.dense["gmacs"], abs=1.5e-3)
        assert made.report.after.macs / 1e9 == pytest.approx(own.given["gmacs"], abs=1.5e-3), point


def test_kept_widths_are_the_papers_floor() -> None:
    sites = match(open_graph(timm.create_model("deit_tiny_patch16_224").eval()))[1]
    from toastc.plans.ratios import narrowed

    counts = {name: count for name, _, count in narrowed(parse(schedule("deit_tiny_patch16_224", "0.76").ratios()), sites)}
    assert counts["blocks.1.attn.qk"] == 6
    assert "blocks.0.attn.qk" not in counts
    assert counts["blocks.11.mlp.inputs"] == int(192 * 0.7)
    assert counts["blocks.9.mlp.hidden"] == int(768 * 0.4)


# ---- what is refused -----------------------------------------------------------------------------------------


def test_static_scores_need_data_and_guides_a_class_token(file: Path) -> None:
    with pytest.raises(ToastcError, match="needs calibration data"):
        toastc.prune(file, RATIOS, recipe="toast")
    plain = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, patch_size=8, depth=1, embed_dim=24, num_heads=2,
                              class_token=False, global_pool="avg").eval()  # fmt: skip
    with pytest.raises(ToastcError, match="no class token"):
        toastc.prune(plain, RATIOS, passes="plan-selections{guide=yes}", example_inputs=(images(2),))
    with pytest.raises(ToastcError, match="no point"):
        schedule("deit_tiny_patch16_224", "1.0")
