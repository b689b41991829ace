"""Channels pruned while training: what compactors leave is what the ordinary cut makes of the folded weights."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small import compacted, numbers
from torch import nn
from zoo_exports import quiet
from zoo_models import FAMILIES

import toastc
from toastc.system.errors import NothingToPrune, ToastcError
from toastc.training.compactors import Compacted
from toastc.training.gates import Compactor

torch.set_num_threads(1)
SMALL = ["deit_tiny", "swin_tiny", "vit_relpos_small", "eva02_tiny", "toy_gqa", "toy_packed", "torch_encoder"]


def shaken(made: Compacted, seed: int = 0) -> None:
    """As if it had been trained: no compactor is the identity any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for matrix in made.groups[1]["params"]:
            matrix.add_(0.3 * torch.randn(matrix.shape, generator=generator) / matrix.shape[-1] ** 0.5)


@pytest.mark.parametrize("name", SMALL)
def test_folded_and_cut_gives_what_was_trained(name: str) -> None:
    (model, groups, control), args, others = compacted(name)
    dense = FAMILIES[name].small(0).eval()
    with torch.no_grad(), quiet():
        before = numbers(dense(*others))
        assert (numbers(model(*others)) - before).abs().max() < 1e-5 * before.abs().max(), "compactors begin as identities"
        shaken(Compacted(model, groups, control))
        control.draw()
        for gate in control.gates:  # what finish does to the rows, before anything is folded
            for matrix in gate.matrices:
                matrix.mul_(gate.alive[:, :, None])
        trained = numbers(model(*others))
        plan = control.finish()
        assert not any(isinstance(m, Compactor) for m in model.modules())
        assert model.state_dict().keys() == dense.state_dict().keys()
        folded = numbers(model(*others))
        result = toastc.prune(model, plan=plan, example_inputs=args)
        small = numbers(result.model(*others))
    assert (trained - before).abs().max() > 1e-3 * before.abs().max(), "the compactors did nothing"
    assert (folded - trained).abs().max() < 1e-4 * trained.abs().max()
    assert (small - folded).abs().max() < 1e-4 * trained.abs().max()
    assert 0.5 * result.report.before.macs < result.report.after.macs <= 0.6 * result.report.before.macs
    assert result.report.verified is not None and result.report.verified["ok"]


def test_every_parameter_is_in_one_group_and_compactors_do_not_decay() -> None:
    (model, groups, control), _, _ = compacted()
    parts = [{id(p) for p in group["params"]} for group in groups]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {id(p) for p in model.parameters()}
    assert groups[1]["weight_decay"] == 0 and groups[1]["momentum"] == 0.99
    assert {g.name.rpartition(".")[2] for g in control.gates} == {"qk", "vo", "hidden"}
    assert all(len(g.matrices) == (2 if g.name.endswith(".qk") else 1) for g in control.gates)


def test_heads_and_attention_are_consistent() -> None:
    (model, groups, control), _, _ = compacted(target="macs=0.5")
    shaken(Compacted(model, groups, control))
    control.draw()
    assert any(not g.alive.all() for g in control.gates)
    for gate in control.gates:
        assert len(set(gate.alive.sum(1).tolist())) == 1, "every head keeps as many"
        norms = gate.norms()
        for head, alive in zip(norms, gate.alive, strict=True):
            assert alive.all() or head[alive].min() >= head[~alive].max(), "and those with the largest norms"


def trained(made: Compacted, steps: int, seed: int = 0, optimizer: Any = None) -> Any:
    optimizer = optimizer or torch.optim.SGD(made.groups, lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(4, 3, 32, 32, generator=generator)
        optimizer.zero_grad()
        made.model(x).square().mean().backward()
        made.control.before_step()
        optimizer.step()
        made.control.after_step()
    return optimizer


def test_a_masked_row_hears_the_penalty_alone() -> None:
    (model, groups, control), args, _ = compacted(warmup=0, every=1, penalty=0.125)
    shaken(Compacted(model, groups, control))
    control.draw()
    model(*args).square().mean().backward()
    control.before_step()
    seen = 0
    for gate in control.gates:
        for matrix in gate.matrices:
            assert matrix.grad is not None
            pull = 0.125 * matrix.detach() / matrix.detach().norm(dim=2, keepdim=True)
            assert torch.allclose(matrix.grad[~gate.alive], pull[~gate.alive])
            assert not torch.allclose(matrix.grad[gate.alive], pull[gate.alive], atol=1e-8)
            seen += int((~gate.alive).sum())
    assert seen


def test_a_masked_channel_comes_back() -> None:
    """The loss itself pulls down rows that lived: at the next drawing they go, and those that were masked are back."""
    made, _, _ = compacted(target="macs=0.8", warmup=1, every=5, penalty=0.0)
    shaken(made)
    gates = made.control.gates
    optimizer = torch.optim.SGD(made.groups[1]["params"], lr=0.5)
    made.control.step = 1
    made.control.draw()
    first = [g.alive.clone() for g in gates]
    while made.control.drawn < 2:
        loss = sum((matrix[living] ** 2).sum() for g, living in zip(gates, first, strict=True) for matrix in g.matrices)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        made.control.before_step()
        optimizer.step()
        made.control.after_step()
    back = sum(int((g.alive & ~before).sum()) for g, before in zip(gates, first, strict=True))
    gone = sum(int((~g.alive & before).sum()) for g, before in zip(gates, first, strict=True))
    assert back and gone


@pytest.mark.parametrize("begin", ["alike", "magnitude"])
def test_weights_can_tell_rows_apart_at_first(begin: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3).eval()
    faint = torch.arange(1, 192, 3)  # a third of the channels, spread out
    with torch.no_grad(), quiet():
        model.blocks[1].mlp.fc1.weight[faint] *= 1e-3
        control = toastc.compact(model, "macs=0.7", example_inputs=(torch.randn(2, 3, 32, 32),), begin=begin, round_to=4).control
    control.draw()
    gate = next(g for g in control.gates if g.name == "blocks.1.mlp.hidden")
    gone = set((~gate.alive[0]).nonzero().flatten().tolist())
    assert (len(gone) >= 8 and gone <= set(faint.tolist())) == (begin == "magnitude")


def test_the_penalty_takes_masked_rows_to_nothing() -> None:
    made, _, _ = compacted(warmup=1, every=1000, penalty=0.0, masked_penalty=0.04, momentum=0.9)
    trained(made, 1)
    residue = made.control.residue
    trained(made, 60)
    assert made.control.residue < 0.2 * residue


def test_a_budget_is_reached_in_steps_and_never_missed() -> None:
    (model, groups, control), args, _ = compacted(target="params=0.7", ramp=4, round_to=1)
    shaken(Compacted(model, groups, control))
    kept = []
    for _ in range(5):
        control.draw()
        kept.append(sum(float(g.alive.float().mean()) for g in control.gates))
    assert kept == sorted(kept, reverse=True) and kept[0] > kept[3] == kept[4]
    plan = control.finish()
    with quiet():
        report = toastc.prune(model, plan=plan, example_inputs=args).report
    assert 0.69 * report.before.params < report.after.params <= 0.7 * report.before.params


def test_training_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, _, _ = compacted()
    trained(whole, 7, seed=1)
    trained(whole, 4, seed=2, optimizer=torch.optim.SGD(whole.groups, lr=0.05, momentum=0.9))
    first, _, _ = compacted()
    trained(first, 7, seed=1)
    torch.save([first.model.state_dict(), first.control.state_dict()], tmp_path / "state.pt")
    second, _, _ = compacted(seed=3)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    second.model.load_state_dict(weights)
    second.control.load_state_dict(state)
    trained(second, 4, seed=2, optimizer=torch.optim.SGD(second.groups, lr=0.05, momentum=0.9))
    assert second.control.step == 11 and second.control.drawn == whole.control.drawn
    for a, b in zip(whole.control.gates, second.control.gates, strict=True):
        assert torch.equal(a.alive, b.alive)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True))
    with pytest.raises(ToastcError, match="another model"):
        second.control.load_state_dict({**state, "alive.nowhere": torch.ones(1)})


def test_a_copy_trains_on_its_own() -> None:
    """Exponential averages and the like copy the module."""
    made, args, _ = compacted()
    other = copy.deepcopy(made.model)
    shaken(made)
    assert (made.model(*args) - other(*args)).abs().max() > 1e-4


def test_merged_tokens_and_compactors_together() -> None:
    """The module with merged tokens is trained, and cut as any other."""
    from toastc.training import finetune

    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, embed_dim=48, num_heads=3, num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    with quiet():
        merged = finetune.trainable(model, tokens="h1,v2", example_inputs=(x,))
        made = toastc.compact(merged, "macs=0.6", example_inputs=(x,), round_to=4)
        shaken(made)
        plan = made.control.finish()
        with torch.no_grad():
            expected = merged.eval()(x)
            result = toastc.prune(merged, plan=plan, example_inputs=(x,))
            assert (result.model(x) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert result.report.verified is not None and result.report.verified["ok"]


def test_modes_come_back_and_mistakes_are_named() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3).train()
    model.blocks[0].eval()
    x = (torch.randn(2, 3, 32, 32),)
    with quiet():
        toastc.compact(model, "macs=0.5", example_inputs=x)
    assert model.training and not model.blocks[0].training and model.blocks[1].training
    with pytest.raises(ToastcError, match="parametrized"):
        toastc.compact(model, "macs=0.5", example_inputs=x)
    for target, word in (("latency=0.5", "latency"), ("macs=0.01", "smallest is"), ("flops=1", "not known")):
        fresh = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3)
        with quiet(), pytest.raises(ToastcError, match=word):
            toastc.compact(fresh, target, example_inputs=x)
    with pytest.raises(ToastcError, match="begin is alike or magnitude"):
        toastc.compact(fresh, "macs=0.5", example_inputs=x, begin="weights")
    with quiet(), pytest.raises(NothingToPrune):
        toastc.compact(nn.Linear(3, 3), "macs=0.5", example_inputs=(torch.randn(2, 3),))


WORKER = """
import sys
sys.path[:0] = ["tests", "tools"]
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from small import compacted
dist.init_process_group("gloo")
made, _, _ = compacted()
module = DistributedDataParallel(made.model)
optimizer = torch.optim.SGD(made.groups, lr=0.05, momentum=0.9)
generator = torch.Generator().manual_seed(dist.get_rank())
for _ in range(6):
    optimizer.zero_grad()
    module(torch.randn(4, 3, 32, 32, generator=generator)).square().mean().backward()
    made.control.before_step()
    optimizer.step()
    made.control.after_step()
masks = torch.cat([g.alive.flatten() for g in made.control.gates]).to(torch.uint8)
norms = torch.cat([g.norms().flatten() for g in made.control.gates])
every = [torch.zeros_like(masks) for _ in range(2)]
sums = [torch.zeros_like(norms) for _ in range(2)]
dist.all_gather(every, masks)
dist.all_gather(sums, norms)
assert not masks.all() and torch.equal(*every) and torch.equal(*sums)
if dist.get_rank() == 0:
    print("the same masks")
dist.barrier()
del module
dist.destroy_process_group()
"""


def test_all_processes_hold_the_same_masks(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    root = Path(__file__).resolve().parents[2]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(tmp_path / "worker.py"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300)
    assert done.returncode == 0 and "the same masks" in done.stdout, done.stderr[-2000:]
