"""The backend looks first: the dense graph runs until there are inputs enough, then a smaller one within a bound."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from zoo_exports import quiet
from zoo_models import FAMILIES

import toastc
from toastc.calibration import Synthetic
from toastc.compiler.options import Options
from toastc.compiler.sources.dynamo.cache import key_of, shrink
from toastc.compiler.sources.dynamo.observed import Observed

torch.set_num_threads(1)
EAGER = {"then": "eager", "observe": 64, "target": "error=0.2"}
SEEN = np.concatenate([batch["x"] for batch in Synthetic({"x": (None, 3, 32, 32)}, 384)])


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logging.disable(logging.NOTSET)
    with caplog.at_level("INFO", "toastc"), torch.no_grad():
        yield caplog


def vit(seed: int = 0) -> nn.Module:
    with quiet():
        return FAMILIES["deit_tiny"].small(seed).eval()


def images(number: int, batch: int = 16) -> torch.Tensor:
    return torch.from_numpy(SEEN[number * batch :][:batch].copy())


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def swapped(compiled: Any, model: nn.Module, numbers: Iterable[int], batch: int = 16) -> list[bool]:
    """At each call: is it something else than the dense model that answers?"""
    return [apart(compiled(images(n, batch)), model(images(n, batch))) > 1e-5 for n in numbers]


def test_dense_until_enough_was_seen_then_within_the_bound(said: pytest.LogCaptureFixture) -> None:
    model = vit()
    compiled = torch.compile(model, backend="toastc", options=EAGER)
    assert swapped(compiled, model, range(6)) == [False] * 3 + [True] * 3  # the call that brings the last one has it already
    errors = [apart(compiled(images(n)), model(images(n))) for n in range(16, 24)]
    assert sum(e * e for e in errors) / len(errors) < 0.25**2
    line = next(r.message for r in said.records if "couplings narrower" in r.message)
    assert int(re.search(r"(\d+) % of the MACs left", line)[1]) < 95  # type: ignore[index]
    assert "error=0.2 is kept" in line
    assert any("chosen in" in r.message and "64 inputs" in r.message for r in said.records)


def test_without_options_it_is_a_small_bound(said: pytest.LogCaptureFixture) -> None:
    model = vit()
    compiled = torch.compile(model, backend=toastc.backend, options={"then": "eager"})
    swapped(compiled, model, range(5))
    assert apart(compiled(images(1, 128)), model(images(1, 128))) < 0.03
    assert any("error=0.02" in r.message for r in said.records)


def test_the_same_inputs_tell_nothing_new(said: pytest.LogCaptureFixture) -> None:
    """As a warm-up has them: what is fitted on would be what it is judged by."""
    model = vit()
    compiled = torch.compile(model, backend="toastc", options=EAGER)
    assert swapped(compiled, model, [0] * 10 + [1, 1, 2, 3]) == [False] * 13 + [True]
    torch._dynamo.reset()
    said.clear()
    compiled = torch.compile(model, backend="toastc", options=EAGER | {"seed": 1})
    assert not any(swapped(compiled, model, [0] * 70))
    assert sum("only 16 differ" in r.message for r in said.records) == 1


def test_large_batches_are_no_reason_to_give_up() -> None:
    """Two of them are wanted, however many inputs that is."""
    seen = Observed(4)
    assert not seen.add({"x": torch.randn(256, 2)})
    assert not seen.in_vain
    assert seen.add({"x": torch.randn(256, 2)})


def test_where_nothing_can_be_cut_the_dense_graph_stays(said: pytest.LogCaptureFixture) -> None:
    model = vit()
    compiled = torch.compile(model, backend="toastc", options=EAGER | {"target": "error=1e-8"})
    assert not any(swapped(compiled, model, range(6)))
    assert any("0 couplings narrower" in r.message and "nothing can be cut within error=1e-08" in r.message for r in said.records)


def test_no_call_fails_for_what_can_not_be_met(said: pytest.LogCaptureFixture) -> None:
    model = vit()
    compiled = torch.compile(model, backend="toastc", options=EAGER | {"target": "macs=0.01"})
    assert not any(swapped(compiled, model, range(6)))
    assert any(r.levelname == "ERROR" and "can not be met" in r.message for r in said.records)


@pytest.mark.parametrize("dynamic", [None, True])
def test_graphs_of_other_batches_are_observed_together(said: pytest.LogCaptureFixture, dynamic: bool | None) -> None:
    model = vit()
    compiled = torch.compile(model, backend="toastc", options=EAGER, dynamic=dynamic)
    assert swapped(compiled, model, range(2), 16) == [False] * 2
    assert swapped(compiled, model, range(4, 7), 8) == [False] * 3
    assert swapped(compiled, model, range(7, 9), 8) == [True] * 2
    assert swapped(compiled, model, range(1), 16) == [True]
    assert sum("chosen in" in r.message for r in said.records) == 1
    same = compiled(images(0, 8)), compiled(images(0, 16))[:8]
    assert torch.allclose(*same, atol=1e-5)


RUN = """
import logging, sys, torch
from compiler.sources.test_observed import EAGER, images, swapped, vit
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
with torch.no_grad():
    model = vit(int(sys.argv[1]))
    made = swapped(torch.compile(model, backend="toastc", options=EAGER), model, range(6))
print("SWAPPED", "".join("01"[m] for m in made))
"""


def another_process(cache: Path, seed: int = 0, more: str = "") -> subprocess.Popen[str]:
    env = {**os.environ, "TOASTC_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", RUN + more, str(seed)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip


def test_another_process_finds_the_plan_again(tmp_path: Path) -> None:
    """Two at once, then one more at once smaller; other weights find nothing, and a damaged entry is written anew."""
    both = [another_process(tmp_path) for _ in range(2)]
    first = [p.communicate()[0] for p in both]
    assert all("SWAPPED 000111" in out for out in first), first
    (entry,) = tmp_path.glob("*.safetensors")
    out = another_process(tmp_path).communicate()[0]
    assert "SWAPPED 111111" in out, out
    assert "chosen in" not in out
    entry.write_bytes(entry.read_bytes()[:100])
    out = another_process(tmp_path).communicate()[0]
    assert "SWAPPED 000111" in out, out
    assert entry.stat().st_size > 100
    assert "SWAPPED 000111" in another_process(tmp_path, seed=1).communicate()[0]
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_number_in_the_code_is_part_of_the_key() -> None:
    class Scaled(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by, self.weight = by, nn.Parameter(torch.ones(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight * self.by

    def key(by: float, batch: int) -> str | None:
        return key_of(torch.export.export(Scaled(by), (torch.zeros(batch, 4),)).module(), Options())

    assert key(0.5, 2) == key(0.5, 3)
    assert key(0.5, 2) != key(0.25, 2)


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / f"{n}.safetensors").write_bytes(bytes(100))
        os.utime(tmp_path / f"{n}.safetensors", (n, n))
    shrink(tmp_path.glob("*"), 250)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3.safetensors", "4.safetensors"]


def test_weights_that_change_are_observed_anew(said: pytest.LogCaptureFixture) -> None:
    model = vit()
    compiled = torch.compile(model, backend="toastc", options=EAGER)
    assert swapped(compiled, model, range(5))[-1]
    model.blocks[0].mlp.fc2.weight.mul_(1.5)  # type: ignore[index, union-attr, operator]
    assert swapped(compiled, model, range(5)) == [False] * 3 + [True] * 2
    assert "beginning anew" in said.text


def test_threads_see_one_swap(said: pytest.LogCaptureFixture) -> None:
    model = vit()
    compiled = torch.compile(model, backend="toastc", options=EAGER)
    compiled(images(0))
    wrong: list[str] = []

    def serve(first: int) -> None:
        try:
            with torch.no_grad():
                was = False
                for n in range(first, first + 8):
                    off = apart(compiled(images(n)), model(images(n)))
                    now = off > 1e-5
                    if off > 0.4 or (was and not now):
                        wrong.append(f"{n}: {off} after {was}")
                    was = now
        except Exception as error:  # noqa: BLE001  of a thread, to be told by the one who started it
            wrong.append(repr(error))

    threads = [threading.Thread(target=serve, args=(8 * t,)) for t in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum("chosen in" in r.message for r in said.records) == 1
    assert swapped(compiled, model, range(2)) == [True] * 2


class Broken(nn.Module):
    """A ViT between the blocks of which Dynamo gives up."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner: Any = self.inner
        x = inner._pos_embed(inner.patch_embed(x))
        for block in inner.blocks:
            x = block(x)
            torch._dynamo.graph_break()
        return inner.head(inner.norm(x)[:, 0])


def test_graphs_of_one_model_share_a_bound(said: pytest.LogCaptureFixture) -> None:
    model = Broken(vit()).eval()
    compiled = torch.compile(model, backend="toastc", options=EAGER)
    swapped(compiled, model, range(6))
    errors = [apart(compiled(images(n)), model(images(n))) for n in range(16, 24)]
    assert 1e-5 < (sum(e * e for e in errors) / len(errors)) ** 0.5 < 0.25
    assert any(re.search(r"\d graphs share error=0.2", r.message) for r in said.records)


def test_plans_are_saved_one_for_each_graph(said: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    model = Broken(vit()).eval()
    compiled = torch.compile(model, backend="toastc", options=EAGER | {"plan_out": tmp_path / "plan.safetensors"})
    outs = [compiled(images(n)) for n in range(5)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan-2.safetensors", "plan.safetensors"]
    torch._dynamo.reset()
    whole = vit()
    options = {"then": "eager", "recipe": "magnitude", "ratios": 0.25, "plan_out": tmp_path / "whole.safetensors"}
    expected = torch.compile(whole, backend="toastc", options=options)(images(0))
    torch._dynamo.reset()
    again = torch.compile(whole, backend="toastc", options={"then": "eager", "plan": tmp_path / "whole.safetensors"})(images(0))
    assert torch.allclose(expected, again, atol=1e-5)
    assert len(outs) == 5


def test_distributed_data_parallel(said: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Its module is compiled, graph by graph as it is split for training; or whole, as it is meant to be served."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = vit()
        parallel = nn.parallel.DistributedDataParallel(model)
        for each in (parallel, parallel.module):
            torch._dynamo.reset()
            compiled = torch.compile(each, backend="toastc", options=EAGER)
            assert swapped(compiled, model, range(6))[-1]
            assert apart(compiled(images(20)), model(images(20))) < 0.3
    finally:
        torch.distributed.destroy_process_group()


def test_a_break_inside_a_block_is_said(said: pytest.LogCaptureFixture) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = nn.functional.gelu(self.up(x))
            torch._dynamo.graph_break()
            return x + self.down(h)

    model, x = Half().eval(), torch.randn(2, 8, 16)
    assert torch.equal(torch.compile(model, backend="toastc", options=EAGER)(x), model(x))
    assert "a graph break may have cut a block in two" in said.text


def test_training_mode_stays_dense_and_is_said(said: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.5, batch_first=True, activation="gelu").train()
    compiled = torch.compile(layer, backend="toastc", options=EAGER)
    x = torch.randn(96, 8, 2) @ torch.randn(2, 32)
    assert not torch.equal(compiled(x), compiled(x)), "dropout is at work"
    assert "captured in training mode (dropout)" in said.text
    layer.eval()
    for part in x.split(32):
        compiled(part)
    assert any("couplings narrower" in r.message for r in said.records)


@pytest.mark.parametrize("words", [{"fullgraph": True}, {"fullgraph": True, "dynamic": True}])
def test_observed_whole(said: pytest.LogCaptureFixture, words: dict[str, bool]) -> None:
    model = vit()
    compiled = torch.compile(model, backend="toastc", options=EAGER, **words)  # type: ignore[call-overload]
    assert swapped(compiled, model, range(5))[-1]


def test_under_autocast_what_is_measured_is_not_rounded(said: pytest.LogCaptureFixture) -> None:
    model = vit()
    compiled = torch.compile(model, backend="toastc", options=EAGER)
    with torch.autocast("cpu", torch.bfloat16):
        outs = [compiled(images(n)) for n in range(6)]
    assert outs[-1].dtype is torch.bfloat16
    assert apart(outs[-1].float(), model(images(5))) < 0.3
    assert any("couplings narrower" in r.message for r in said.records)


def test_what_is_wrong_is_said_at_the_first_call() -> None:
    for options, word in (({"recipe": "nonsense"}, "no recipe is called"), ({"target": "error=2"}, "between 0 and 1"),
                          ({"observe": 0}, "give data"), ({"ratios": 0.5, "target": "macs=0.6"}, "give one of")):  # fmt: skip
        torch._dynamo.reset()
        with torch.no_grad(), pytest.raises(Exception, match=word):
            torch.compile(vit(), backend="toastc", options={"then": "eager", **options})(images(0))
