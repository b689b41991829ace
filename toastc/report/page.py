"""The report as one self-contained page."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from ..files import write_beside
from .data import Report
from .terminal import print_report


def write_page(report: Report, target: Path) -> None:
    console = Console(record=True, width=120, file=io.StringIO())
    print_report(report, console)
    with write_beside(target) as temporary:
        console.save_html(str(temporary))
