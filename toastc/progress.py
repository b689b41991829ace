"""Progress of long work: a bar on a terminal, plain lines elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Tell = Callable[[str], None]  # "this stage begins"


@contextlib.contextmanager
def progress(stages: int, quiet: bool = False) -> Iterator[Tell]:
    """Yield a function to call at the beginning of each stage. Writes to stderr only."""
    if quiet:
        yield lambda stage: None
        return
    if not sys.stderr.isatty():
        start = time.perf_counter()

        def line(stage: str) -> None:
            print(f"[{time.perf_counter() - start:6.1f} s] {stage}", file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=stages)
        begun = False

        def advance(stage: str) -> None:
            nonlocal begun
            bar.update(task, description=stage, advance=1 if begun else 0)
            begun = True

        yield advance
