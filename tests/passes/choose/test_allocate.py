"""A budget spread by what everything costs and loses: met, never exceeded, and heads go whole where that is best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import models
import pytest

import toastc
from toastc.calibration import open_data
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.passes import AllocateWidths, AnalyseLosses, CollectMoments, MatchSites, TimeBlocks
from toastc.passes.analyse.times import block_of
from toastc.passes.state import State, run
from toastc.plans.cost import Target
from toastc.plans.latency import Block, Times
from toastc.system.errors import ToastcError


@pytest.mark.parametrize("what", ["macs", "params"])
@pytest.mark.parametrize("keep", [0.85, 0.7])
def test_a_budget_is_met_and_never_exceeded(data_folder: Path, what: str, keep: float) -> None:
    path = models.save(models.vit(), data_folder / "model.onnx")
    passes = "collect-moments,analyse-losses,measure-gains,allocate-widths{round_to=1},plan-losses"
    result = toastc.prune(path, target=f"{what}={keep}", data=data_folder / "data.npy", passes=passes)
    share = getattr(result.report.after, what) / getattr(result.report.before, what)
    slack = 0.02  # biases that a shift needs; a step of a tiny model
    assert keep - slack <= share <= keep + (0 if what == "macs" else slack)


def test_chosen_ratios_ask_for_the_same_widths(data_folder: Path) -> None:
    path = models.save(models.vit(), data_folder / "model.onnx")
    first = toastc.prune(path, target="macs=0.7", data=data_folder / "data.npy", ratios_out=data_folder / "r.json")
    again = toastc.prune(path, data_folder / "r.json", data=data_folder / "data.npy")
    assert [(c.site, c.coupling, c.kept) for c in again.report.couplings] == [
        (c.site, c.coupling, c.kept) for c in first.report.couplings
    ]


def test_heads_go_whole_and_the_others_make_up(data_folder: Path) -> None:
    path = models.save(models.vit(), data_folder / "model.onnx")
    result = toastc.prune(path, {"attention": {"heads": 0.5}}, data=data_folder / "data.npy")
    assert result.report.verified["ok"]  # type: ignore[index]
    assert {c.kept for c in result.report.couplings if c.coupling == "heads"} == {1}


def test_a_target_out_of_reach_says_what_is_in_reach(data_folder: Path) -> None:
    path = models.save(models.vit(), data_folder / "model.onnx")
    with pytest.raises(ToastcError, match=r"smallest is macs=0\.\d"):
        toastc.prune(path, target="macs=0.01", data=data_folder / "data.npy")


def test_the_knapsack_takes_what_is_cheap_to_lose(data_folder: Path) -> None:
    path = models.save(models.vit(), data_folder / "model.onnx")
    graph = OnnxGraph(load_model(path))
    state = State(graph, target=Target("macs", 0.7), data=open_data(data_folder / "data.npy", graph.input_sizes()))
    state, _ = run([MatchSites(), CollectMoments(), AnalyseLosses()], state)
    dear = {name: 1e6 if name.startswith("blocks.0.") else 1.0 for name in state.losses}
    widths = AllocateWidths(4)(replace(state, gains=dear)).widths
    assert not any(name.startswith("blocks.0.") for name in widths)
    assert any(name.startswith("blocks.1.") for name in widths)


def test_a_head_that_says_nothing_goes_whole(data_folder: Path) -> None:
    dense = models.weights()
    width = models.DIM // models.HEADS
    dense["blocks.0.attn.proj.weight"][:width] *= 1e-4  # the first head is not heard
    path = models.save(models.vit(dense=dense), data_folder / "model.onnx")
    result = toastc.prune(path, target="macs=0.85", data=data_folder / "data.npy")
    heads = result.plan.get("blocks.0.attn", "heads")
    assert heads is not None
    assert heads.index.tolist() == [[1]]  # type: ignore[union-attr]
    assert result.report.verified["ok"]  # type: ignore[index]


def test_a_latency_is_spread_by_what_was_timed(data_folder: Path) -> None:
    """Timed by the clock; then half way to the fastest, by a clock that nothing disturbs."""
    path = models.save(models.vit(), data_folder / "model.onnx")
    graph = OnnxGraph(load_model(path))
    data = open_data(data_folder / "data.npy", graph.input_sizes())
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


@pytest.mark.parametrize("name", ["svd", "magnitude", "geometric-median"])
def test_recipes_that_know_no_losses_spend_the_whole_budget(name: str, tiny: Path) -> None:
    """One ratio for all, in steps of eight channels: between what is asked for and one step less."""
    found = [toastc.prune(tiny, target=f"macs={keep}", recipe=name, dry_run=True).report for keep in (0.8, 0.6)]
    kept = [r.after.macs / r.before.macs for r in found]
    plain = [toastc.prune(tiny, target=f"macs={k}", recipe="magnitude", dry_run=True).report.after.macs for k in (0.8, 0.6)]
    assert kept[0] <= 0.8
    assert kept[1] <= 0.6
    assert [r.after.macs for r in found] == plain
