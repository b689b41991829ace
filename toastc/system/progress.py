"""Progress of long work: a bar on a terminal, plain lines elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator

Tell = Callable[..., None]  # tell(stage): it begins; tell(stage, 0.4): so much of it is done
EVERY = 10.0  # seconds between two lines about one stage


def silent(stage: str, done: float = 0.0) -> None:
    """Tells nobody."""


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Libraries keep their warnings and logs to themselves: what matters of it is checked, and said in one line."""
    if os.environ.get("TOASTC_DEBUG"):
        yield
        return
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


@contextlib.contextmanager
def progress(quiet: bool = False) -> Iterator[Tell]:
    """Yield a function to call at the beginning of each stage and on its way. Writes to stderr only."""
    if quiet:
        yield silent
        return
    if not sys.stderr.isatty():
        start = said = time.perf_counter()

        def line(stage: str, done: float = 0.0) -> None:
            nonlocal said
            now = time.perf_counter()
            if not done or now - said > EVERY:
                share = f" {100 * done:.0f} %" if done else ""
                print(f"[{now - start:6.1f} s] {stage}{share}", file=sys.stderr, flush=True)
                said = now

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def advance(stage: str, done: float = 0.0) -> None:
            bar.update(task, description=stage, completed=done, total=1.0 if done else None)

        yield advance
