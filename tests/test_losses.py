"""Losses in closed form, against what they claim: the error that really arises, and that nothing redundant costs anything."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

import toastc
from toastc.calibration import Moments, Sums, open_data
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.passes import AllocateWidths, AnalyseLosses, CollectMoments, MatchSites, TimeBlocks
from toastc.passes.analyse.elimination import ROUNDING, eliminate, rounding_without
from toastc.passes.analyse.losses import energy, ranked, roots, turned_products, turned_values
from toastc.passes.analyse.simulate import remade
from toastc.passes.analyse.times import block_of
from toastc.passes.state import State, run
from toastc.plans.cost import Target
from toastc.plans.latency import Block, Times
from toastc.system.errors import ToastcError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _drawn_anew() -> None:
    """Each test draws the same numbers, whichever ran before it."""
    global RNG
    RNG = np.random.default_rng(0)


def correlated(samples: int, groups: int, width: int, rank: int | None = None) -> np.ndarray:
    """Vectors with a mean, that live in `rank` dimensions all groups share."""
    rank = groups * width if rank is None else rank
    mixed = RNG.standard_normal((samples, rank)) @ RNG.standard_normal((rank, groups * width))
    return (mixed + RNG.standard_normal(groups * width)).reshape(samples, groups, width)


def test_sums_are_what_numpy_says_and_add_up() -> None:
    rows = correlated(500, 2, 4)
    whole = Sums.of(rows, together=True)
    parts = Sums.of(rows[:100], True) + Sums.of(rows[100:], True)
    for sums in (whole, parts):
        assert np.allclose(sums.mean, rows.mean(0))
        assert np.allclose(sums.covariance[0], np.cov(rows.reshape(500, 8).T, bias=True))
        assert np.isclose(sums.energy, (rows**2).sum())
    apart = Sums.of(rows, together=False)
    assert np.allclose(apart.second[1], rows[:, 1].T @ rows[:, 1] / 500)


def test_sums_of_torch_are_those_of_numpy() -> None:
    torch = pytest.importorskip("torch")
    rows = correlated(50, 2, 4).astype(np.float32)
    for a, b in zip(Sums.of(rows, True).arrays().values(), Sums.of(torch.from_numpy(rows), True).arrays().values(), strict=True):
        assert np.allclose(a, b, rtol=1e-5)


def test_moments_come_back_from_their_file(tmp_path: Path) -> None:
    moments = Moments({"a.vo/out": Sums.of(correlated(9, 2, 3), True)}, 9, "somewhere")
    moments.save(tmp_path / "m.safetensors")
    again = Moments.load(tmp_path / "m.safetensors")
    assert (again.images, again.source, list(again)) == (9, "somewhere", ["a.vo/out"])
    assert np.array_equal(again["a.vo/out"].outer, moments["a.vo/out"].outer)
    (tmp_path / "m.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ToastcError, match="not a moments file"):
        Moments.load(tmp_path / "m.safetensors")


def test_the_curve_of_products_is_the_error_of_the_logits() -> None:
    q, k = correlated(400, 2, 6), correlated(400, 2, 6)
    k -= k.mean(0)
    loss = turned_products(Sums.of(q, False), Sums.of(k, False))
    for width in (1, 3, 6):
        choice = loss.choose(width, range(2))
        true = np.einsum("ngw,mgw->nmg", q, k)
        made = np.einsum("ngk,mgk->nmg", np.einsum("ngw,gkw->ngk", q, choice.left), np.einsum("mgw,gwk->mgk", k, choice.right))
        assert np.isclose(np.square(true - made).mean((0, 1)).sum(), loss.curve[width], rtol=1e-6, atol=1e-9 * loss.curve[0])


def test_no_index_set_beats_the_basis() -> None:
    q, k = Sums.of(correlated(300, 2, 6), False), Sums.of(correlated(300, 2, 6), False)
    turned, picked = turned_products(q, k), ranked(energy(q, 6) * energy(k, 6))
    for width in range(1, 6):
        lost = 0.0
        for g, kept in enumerate(picked.choose(width, range(2)).index):  # type: ignore[union-attr]
            gone = np.ix_(np.delete(np.arange(6), kept), np.delete(np.arange(6), kept))
            lost += float((q.second[g][gone] * k.second[g][gone]).sum())
        assert turned.curve[width] <= lost + 1e-9


def test_the_curve_of_values_bounds_the_error_of_the_output() -> None:
    """The refit across heads can only be better than every head for itself."""
    rows, weight = correlated(2000, 3, 5, rank=9), RNG.standard_normal((15, 11))
    loss = turned_values(Sums.of(rows, True), weight)
    for width in (1, 2, 4):
        error = (remade(rows, loss.choose(width, range(3))) - rows).reshape(2000, -1) @ weight
        assert np.square(error).sum(axis=1).mean() <= 3 * loss.curve[width] + 1e-6 * loss.curve[0]


def test_backward_elimination_is_exact_one_by_one() -> None:
    rows, weight = correlated(500, 1, 8), RNG.standard_normal((8, 3))
    cov = np.cov(rows.reshape(500, 8).T, bias=True)
    order, curve = eliminate(cov, weight)
    for kept in range(1, 9):
        stay, gone = np.sort(order[-kept:]), np.sort(order[:-kept])
        across = cov[np.ix_(stay, gone)]
        rest = cov[np.ix_(gone, gone)] - across.T @ np.linalg.solve(cov[np.ix_(stay, stay)], across)
        assert np.isclose(np.trace(weight[gone].T @ rest @ weight[gone]), curve[kept], rtol=2e-2, atol=2e-3 * curve[0])
    assert (np.diff(curve) <= 1e-9).all()


def rounded(rms: np.ndarray, weight: np.ndarray) -> float:
    """What rounding to one scale of 8 bits for all does to the output, through these weights."""
    return float((ROUNDING * rms.max(initial=0)) ** 2 / 12 * np.square(weight).sum())


def test_what_rounding_gains_without_a_channel() -> None:
    rms, weight = np.abs(RNG.standard_normal(7)), RNG.standard_normal((7, 3))
    others = [(np.delete(rms, j), np.delete(weight, j, axis=0)) for j in range(7)]
    gains = [rounded(rms, w) - rounded(r, w) for r, w in others]
    assert np.allclose(rounding_without(rms, weight), gains) and np.count_nonzero(gains) == 1


def test_loud_channels_go_sooner_where_all_are_rounded() -> None:
    """One of usual importance, but with a thousandfold values: by far the largest error of the rounded output is its doing."""
    rows, weight = correlated(500, 1, 8).reshape(500, 8), np.random.default_rng(0).choice([-1.0, 1.0], (8, 3))
    weight[2] *= 2  # not the first to go by what it says
    rows[:, 2], weight[2] = rows[:, 2] * 1000, weight[2] / 1000
    cov, rms = np.cov(rows.T, bias=True), np.sqrt(np.square(rows).mean(axis=0))
    errors = []
    for given in (None, rms):
        order, curve = eliminate(cov, weight, given)
        stay = order[1:]
        errors.append(curve[7] + rounded(rms[stay], weight[stay]))
        assert (order[0] == 2) == (given is not None)
    assert errors[1] < errors[0] / 100


def test_roots() -> None:
    matrix = np.cov(RNG.standard_normal((5, 50)))
    root, back = roots(matrix)
    assert np.allclose(root @ root, matrix)
    assert np.allclose(root @ back, np.eye(5))


# ---- through the whole compiler --------------------------------------------------------------------------


def batches(count: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 16, 16)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "data.npy", batches())
    return tmp_path


def redundant() -> dict[str, np.ndarray]:
    """The tiny ViT's weights, where half of all channels say what others say, or nothing new."""
    dense = models.weights()
    for i in range(models.BLOCKS):
        qkv, bias = dense[f"blocks.{i}.attn.qkv.weight"], dense[f"blocks.{i}.attn.qkv.bias"]
        width = models.DIM // models.HEADS
        for part in range(3):
            for head in range(models.HEADS):
                start = part * models.DIM + head * width
                half = slice(start, start + width // 2), slice(start + width // 2, start + width)
                for array in (qkv, bias):
                    turned = array.T if array.ndim == 2 and array.shape[0] != 3 * models.DIM else array
                    turned[half[1]] = 0.5 * turned[half[0]]
        fc1, own = dense[f"blocks.{i}.mlp.fc1.weight"], dense[f"blocks.{i}.mlp.fc1.bias"]
        rows = fc1 if fc1.shape[0] == len(own) else fc1.T
        rows[len(own) // 2 :], own[len(own) // 2 :] = rows[: len(own) // 2], own[: len(own) // 2]
    return dense


def test_what_is_redundant_goes_without_a_trace(folder: Path) -> None:
    path = models.save(models.vit(dense=redundant()), folder / "model.onnx")
    ratios = {"attention": {"qk": 0.5, "vo": 0.5}, "ffn": 0.5, "round_to": 4}
    passes = "collect-moments{share=1000},analyse-losses,allocate-widths,plan-losses"
    toastc.prune(path, ratios, data=[batches(512)], passes=passes, output=folder / "small.onnx")
    expected, got = models.run(path)[0], models.run(folder / "small.onnx")[0]
    assert np.allclose(got, expected, atol=1e-2 * np.abs(expected).max())
    toastc.prune(path, ratios, recipe="magnitude", output=folder / "other.onnx")
    assert not np.allclose(models.run(folder / "other.onnx")[0], expected, atol=1e-1 * np.abs(expected).max())


@pytest.mark.parametrize("what", ["macs", "params"])
@pytest.mark.parametrize("keep", [0.85, 0.7])
def test_a_budget_is_met_and_never_exceeded(folder: Path, what: str, keep: float) -> None:
    path = models.save(models.vit(), folder / "model.onnx")
    passes = "collect-moments,analyse-losses,measure-gains,allocate-widths{round_to=1},plan-losses"
    result = toastc.prune(path, target=f"{what}={keep}", data=folder / "data.npy", passes=passes)
    share = getattr(result.report.after, what) / getattr(result.report.before, what)
    slack = 0.02  # biases that a shift needs; a step of a tiny model
    assert keep - slack <= share <= keep + (0 if what == "macs" else slack)


def test_data_beats_magnitudes(folder: Path) -> None:
    path = models.save(models.vit(), folder / "model.onnx")
    expected = models.run(path, 8)[0]
    errors = []
    for options in ({"data": folder / "data.npy"}, {"recipe": "magnitude"}):
        toastc.prune(path, {"attention": 0.5, "ffn": 0.5, "round_to": 4}, output=folder / "small.onnx", **options)
        errors.append(float(np.square(models.run(folder / "small.onnx", 8)[0] - expected).mean()))
    assert errors[0] < 0.7 * errors[1]


def test_torch_and_onnx_find_the_same_moments(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = timm.models.VisionTransformer(**sizes).eval()
    torch.onnx.export(model, (torch.zeros(2, 3, 16, 16),), folder / "m.onnx", dynamo=True, opset_version=20, verbose=False)
    ratios, data = {"attention": 0.5, "ffn": 0.5, "round_to": 4}, [batches(2, seed) for seed in range(16)]
    a = toastc.prune(folder / "m.onnx", ratios, data=data, output=folder / "small.onnx")
    b = toastc.prune(model, ratios, data=data, example_inputs=(torch.zeros(2, 3, 16, 16),))
    assert a.moments is not None
    assert b.moments is not None
    assert sorted(a.moments) == sorted(b.moments)
    for key in (k for k in a.moments if k.endswith("/out")):  # one graph scales its queries, the other its logits
        assert np.allclose(a.moments[key].outer, b.moments[key].outer, rtol=1e-3, atol=1e-4 * np.abs(a.moments[key].outer).max())
    x = batches(2, 99)
    with torch.no_grad():
        theirs = b.model(torch.from_numpy(x)).numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "small.onnx"))
    ours = session.run(None, {session.get_inputs()[0].name: x})[0]
    assert np.allclose(ours, theirs, atol=1e-3 * np.abs(ours).max())


def test_moments_are_reused_for_another_budget(folder: Path) -> None:
    path = models.save(models.vit(), folder / "model.onnx")
    first = toastc.prune(path, target="macs=0.8", data=folder / "data.npy", moments_out=folder / "m.safetensors")
    again = toastc.prune(path, target="macs=0.8", data=folder / "data.npy", moments=folder / "m.safetensors")
    assert first.plan.to_dict() == again.plan.to_dict()
    other = models.save(models.vit("tied"), folder / "other.onnx")
    assert toastc.prune(other, {"attention": 0.5}, moments=folder / "m.safetensors").report.verified["ok"]  # type: ignore[index]


def test_chosen_ratios_ask_for_the_same_widths(folder: Path) -> None:
    path = models.save(models.vit(), folder / "model.onnx")
    first = toastc.prune(path, target="macs=0.7", data=folder / "data.npy", ratios_out=folder / "r.json")
    again = toastc.prune(path, folder / "r.json", data=folder / "data.npy")
    assert [(c.site, c.coupling, c.kept) for c in again.report.couplings] == [
        (c.site, c.coupling, c.kept) for c in first.report.couplings
    ]


def test_heads_go_whole_and_the_others_make_up(folder: Path) -> None:
    path = models.save(models.vit(), folder / "model.onnx")
    result = toastc.prune(path, {"attention": {"heads": 0.5}}, data=folder / "data.npy")
    assert result.report.verified["ok"]  # type: ignore[index]
    assert {c.kept for c in result.report.couplings if c.coupling == "heads"} == {1}


def test_a_target_out_of_reach_says_what_is_in_reach(folder: Path) -> None:
    path = models.save(models.vit(), folder / "model.onnx")
    with pytest.raises(ToastcError, match=r"smallest is macs=0\.\d"):
        toastc.prune(path, target="macs=0.01", data=folder / "data.npy")


def test_constant_activations_are_no_accident(folder: Path) -> None:
    """An FFN that always says the same goes, and its constant stays."""
    dense = models.weights()
    for name in list(dense):
        if "mlp.fc1.weight" in name:
            dense[name] = np.zeros_like(dense[name])
    path = models.save(models.vit(dense=dense), folder / "model.onnx")
    toastc.prune(path, {"ffn": 0.9, "round_to": 4}, data=folder / "data.npy", output=folder / "small.onnx")
    expected = models.run(path)[0]
    assert np.allclose(models.run(folder / "small.onnx")[0], expected, atol=1e-4 * np.abs(expected).max())


def test_synthetic_images_need_no_data(folder: Path) -> None:
    path = models.save(models.vit(), folder / "model.onnx")
    passes = "collect-moments{synthetic=32},analyse-losses,measure-gains{images=4},allocate-widths,plan-losses"
    result = toastc.prune(path, target="macs=0.8", passes=passes)
    assert any("synthetic" in note for note in result.report.notes)


def test_the_knapsack_takes_what_is_cheap_to_lose(folder: Path) -> None:
    path = models.save(models.vit(), folder / "model.onnx")
    graph = OnnxGraph(load_model(path))
    state = State(graph, target=Target("macs", 0.7), data=open_data(folder / "data.npy", graph.input_sizes()))
    state, _ = run([MatchSites(), CollectMoments(), AnalyseLosses()], state)
    dear = {name: 1e6 if name.startswith("blocks.0.") else 1.0 for name in state.losses}
    widths = AllocateWidths(4)(replace(state, gains=dear)).widths
    assert not any(name.startswith("blocks.0.") for name in widths)
    assert any(name.startswith("blocks.1.") for name in widths)


def test_a_head_that_says_nothing_goes_whole(folder: Path) -> None:
    dense = models.weights()
    width = models.DIM // models.HEADS
    dense["blocks.0.attn.proj.weight"][:width] *= 1e-4  # the first head is not heard
    path = models.save(models.vit(dense=dense), folder / "model.onnx")
    result = toastc.prune(path, target="macs=0.85", data=folder / "data.npy")
    heads = result.plan.get("blocks.0.attn", "heads")
    assert heads is not None
    assert heads.index.tolist() == [[1]]  # type: ignore[union-attr]
    assert result.report.verified["ok"]  # type: ignore[index]


def test_a_latency_is_spread_by_what_was_timed(folder: Path) -> None:
    """Timed by the clock; then half way to the fastest, by a clock that nothing disturbs."""
    path = models.save(models.vit(), folder / "model.onnx")
    graph = OnnxGraph(load_model(path))
    data = open_data(folder / "data.npy", graph.input_sizes())
    state = State(graph, target=Target("latency", 0.5), data=data)
    state, _ = run([MatchSites(), CollectMoments(), AnalyseLosses(), TimeBlocks(batch=4)], state)
    assert any("ms at batch 4" in note for note in state.notes)
    assert state.total_time >= sum(state.times[s.name]({}) for s in state.sites) > 0

    def taken(state: State) -> float:
        widths = {s.name: {c.name: state.widths.get(f"{s.name}.{c.name}", c.width) for c in s.every} for s in state.sites}
        return state.total_time + sum(state.times[s](w) - state.times[s]({}) for s, w in widths.items())

    def clock(b: Block) -> float:
        return b.rows * (b.dim + b.out) * (b.hidden + b.heads * (b.qk + b.vo)) * 1e-6

    even = {s.name: Times.of(block_of(graph, s, 4), clock) for s in state.sites}
    state = replace(state, times=even, total_time=1.25 * sum(t({}) for t in even.values()))
    narrow = {"heads": 1, "qk": 8, "vo": 8, "hidden": 8}
    least = 1 + sum(state.times[s.name](narrow) - state.times[s.name]({}) for s in state.sites) / state.total_time
    made = AllocateWidths()(replace(state, target=Target("latency", (1 + least) / 2)))
    assert made.widths
    assert taken(made) <= (1 + least) / 2 * state.total_time * (1 + 1e-9)
    with pytest.raises(ToastcError, match="smallest is latency="):
        AllocateWidths()(replace(state, target=Target("latency", least / 2)))
    with pytest.raises(ToastcError, match="latency"):
        toastc.prune(path, target="latency=0.8", recipe="magnitude")


def test_times_between_those_measured() -> None:
    """A clock that knows the sizes alone: interpolation gives it back, and nothing narrower is slower."""
    block = Block(8, 8, 32, 32, heads=4, qk=32, vo=24)
    times = Times.of(block, lambda b: b.heads * (2 * b.qk + b.vo) + 7.0)
    for widths in ({}, {"qk": 16}, {"heads": 2, "vo": 8}, {"heads": 3, "qk": 9, "vo": 17}):
        heads, qk, vo = (widths.get(k, full) for k, full in (("heads", 4), ("qk", 32), ("vo", 24)))
        assert np.isclose(times(widths), heads * (2 * qk + vo) + 7)
    noise = iter(np.random.default_rng(0).random(5))
    noisy = Times.of(Block(8, 8, 32, 32, hidden=64), lambda b: next(noise))
    assert (np.diff([noisy({"hidden": w}) for w in range(8, 65)]) >= 0).all()


@pytest.mark.parametrize("late", [8, 36])
def test_one_late_time_leaves_the_others_alone(late: int) -> None:
    """The narrowest that was disturbed must not make everything wider look as slow as itself."""
    times = Times.of(Block(8, 8, 32, 32, hidden=64), lambda b: b.hidden + (500.0 if b.hidden == late else 0.0))
    assert [times({"hidden": w}) for w in (22, 50, 64)] == [22, 50, 64]
    assert times({"hidden": late}) <= 50


def test_a_search_never_makes_the_measured_error_worse(folder: Path) -> None:
    path = models.save(models.vit(), folder / "model.onnx")
    np.save(folder / "more.npy", batches(256))
    result = toastc.prune(path, target="macs=0.75", data=folder / "more.npy", search=0.2)
    note = next(n for n in result.report.notes if n.startswith("search:"))
    before, after = (float(x) for x in re.findall(r"\d+\.\d+", note))
    assert after <= before
    assert "128 held-out" in note
    assert result.report.after.macs <= 0.75 * result.report.before.macs
    assert result.moments is not None
    assert result.moments.images == 128
    with pytest.raises(ToastcError, match="search"):
        toastc.prune(path, target="macs=0.75", recipe="magnitude", search=1.0)
    with pytest.raises(ToastcError, match="4 batches of the data are held back"):
        toastc.prune(path, target="macs=0.75", data=folder / "more.npy", images=8, search=1.0)


@pytest.mark.parametrize("name", ["svd", "magnitude", "geometric-median"])
def test_recipes_that_know_no_losses_spend_the_whole_budget(name: str, tiny: Path) -> None:
    """One ratio for all, in steps of eight channels: between what is asked for and one step less."""
    found = [toastc.prune(tiny, target=f"macs={keep}", recipe=name, dry_run=True).report for keep in (0.8, 0.6)]
    kept = [r.after.macs / r.before.macs for r in found]
    plain = [toastc.prune(tiny, target=f"macs={k}", recipe="magnitude", dry_run=True).report.after.macs for k in (0.8, 0.6)]
    assert kept[0] <= 0.8
    assert kept[1] <= 0.6
    assert [r.after.macs for r in found] == plain
