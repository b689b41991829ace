"""What the README and the pages of docs/ show must run: each page from top to bottom, in a folder of its own.

Every ```python block is executed, all of a page in one namespace, and every line of a ```bash block that calls toastc, on
files as a reader would have them: `model.onnx` (a small ViT), `photos/`, and the ratio file of the page.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import Exported
from models import photos
from pages import ROOT, Block, blocks, commands, pages
from zoo_exports import export_onnx, quiet
from zoo_models import FAMILIES

import toastc
from toastc.cli import main
from toastc.plans.ratios import Ratios, parse

HALF = {"attention": 0.5, "ffn": 0.5}
SHORTER = {"--search": "0.01", "--seconds": "0.05"}  # a test need not measure anything
SHALLOW = 3  # blocks of the model; pages that name late blocks get a deeper one
DEPTHS = {"docs/cait.md": 9, "docs/guides/tokens.md": 9}
ELSEWHERE = {"docs/downstream.md"}  # its Python is run by test_downstream.py, on smaller detectors


def small_vit(depth: int = SHALLOW) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": depth, "num_heads": 2, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", **sizes).eval()


def exported_vit(depth: int, folder: Path) -> None:
    images, free = {"images": torch.randn(2, 3, 32, 32)}, {"images": {0: "batch"}}
    with quiet():
        export_onnx(small_vit(depth), images, folder / f"{depth}.onnx", exporter="torchscript", opset=17, dynamic=free)


def runs(page: str) -> bool:
    return any(b.language == "python" or (b.language == "bash" and list(commands(b))) for b in blocks(page))


def names_for(page: str) -> dict[str, Any]:
    """What pages that speak of a reader's own training loop take for granted."""
    if page not in ("docs/toast.md", "docs/cait.md"):
        return {}
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    loss = torch.nn.functional.cross_entropy
    return {
        "torch": torch, "toastc": toastc, "model": small_vit(), "images": images, "ratios": HALF, "loss": loss,
        "logits": torch.randn(2, 10, requires_grad=True), "cross_entropy": torch.tensor(1.0), "batches": [(images, labels)] * 2,
    }  # fmt: skip


def ratios_of(page: str) -> dict[str, Any]:
    """The first ratio file that a page shows, or half of everything."""
    shown = [json.loads(b.text) for b in blocks(page) if b.language == "json"]
    return next((data for data in shown if {"attention", "ffn"} & data.keys()), HALF)


def shortened(words: list[str]) -> list[str]:
    words = [SHORTER.get(before, word) for before, word in zip(["", *words[:-1]], words, strict=True)]
    return [*words, "--no-memory", "--seconds", "0.05"] if words[0] == "bench" else words


def run_block(block: Block, page: str, names: dict[str, Any]) -> list[int]:
    """The exit status of every command of a ```bash block; Python says by itself what is wrong."""
    if block.language == "python" and page not in ELSEWHERE:
        torch._dynamo.reset()
        code = "\n" * (block.line - 1) + block.text.replace('"then": "inductor"', '"then": "eager"')
        exec(compile(code, page, "exec"), names)
    ends = []
    for words, into in commands(block) if block.language == "bash" else ():
        with contextlib.redirect_stdout(open(into, "w")) if into else contextlib.nullcontext():
            ends.append(main(shortened(words)))
    return ends


@pytest.mark.parametrize("page", [p for p in pages() if runs(p)])
@pytest.mark.filterwarnings("ignore")
def test_what_a_page_shows_runs(page: str, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    depth = DEPTHS.get(page, SHALLOW)
    shutil.copy(exported(f"{depth}.onnx", partial(exported_vit, depth)), "model.onnx")
    for place in (Path("photos"), Path("ADEChallengeData2016") / "images" / "training"):
        photos(place, 8, size=(96, 72))
    Path("r.json").write_text(json.dumps(ratios_of(page)))
    if page == "docs/guides/accuracy.md":
        photos(Path("photos"), 136, size=(96, 72))  # a search holds some of them back
        for name in range(10):
            photos(Path("labelled") / str(name), 21, size=(96, 72), seed=name)  # half a point takes two hundred
    if page == "docs/downstream.md":
        family = FAMILIES["hf_upernet_swin"]
        with quiet():
            export_onnx(family.small().eval(), family.inputs(False, 2), Path("upernet.onnx"), exporter="torchscript", opset=17)
    names = names_for(page)
    for block in blocks(page):
        assert not any(run_block(block, page, names)), f"{page}, line {block.line}"


@pytest.mark.parametrize("page", pages())
def test_every_ratio_file_on_a_page_is_valid(page: str) -> None:
    for block in blocks(page):
        if block.language == "json":
            assert parse(json.loads(block.text)) != Ratios(), f"{page}, line {block.line}: asks for nothing"


def test_every_block_says_what_it_is() -> None:
    """So that none is passed over: what can not run is `text` or `console`."""
    for page in pages():
        assert {b.language for b in blocks(page)} <= {"python", "bash", "json", "text", "console", "toml"}, page


def test_the_two_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.M):
        assert re.search(rf"^{line}:", makefile, re.M), line
