"""What the README shows must run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from zoo_exports import quiet

from toastc.ratios import parse

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run(number: int) -> None:
    code = blocks("python")[number].replace('"then": "inductor"', '"then": "eager"')
    torch._dynamo.reset()
    names: dict[str, object] = {}
    with quiet(), torch.no_grad():
        exec(code, names)
    assert {"result", "compiled"} & names.keys()


def test_the_ratio_file_is_valid() -> None:
    assert parse(json.loads(blocks("json")[0])).round_to == 8


def test_the_two_commands_exist() -> None:
    makefile = (Path(__file__).resolve().parent.parent / "Makefile").read_text()
    for line in re.findall(r"^make (\w+)", README, re.M):
        assert re.search(rf"^{line}:", makefile, re.M), line
