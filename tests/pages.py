"""The README and the pages of docs/, as what they show: blocks of code, and the lines of them that call toastc."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int  # of its first line in the page


def pages() -> list[str]:
    """From the root of the repository, in alphabetical order."""
    return ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))]


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [Block(found[1], found[2], text[: found.start(2)].count("\n") + 1) for found in FENCE.finditer(text)]


def commands(block: Block) -> Iterator[tuple[list[str], str | None]]:
    """The words of every line that calls toastc, without comments, and the file that its output goes to, if any."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        words = words[1:] if words[:1] == ["$"] else words
        if words[:1] == ["toastc"]:
            into = words[-1] if len(words) > 2 and words[-2] == ">" else None
            yield words[1:-2] if into else words[1:], into
