"""Progress of long work: a bar on a terminal, plain lines elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

Tell = Callable[..., None]  # tell(stage): it begins; tell(stage, 0.4): so much of it is done
EVERY = 10.0  # seconds between two lines about one stage
SURE = 0.02  # of the whole that must have passed before anything is said of the rest


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


class Course:
    """How far a whole run is. Stages are said to cost so much; what they took so far tells what is left."""

    def __init__(self) -> None:
        self.begun = self.known = time.perf_counter()
        self.costs: dict[str, float] = {}
        self.passed, self.stage, self.now = 0.0, "", 0.0

    def expect(self, costs: Mapping[str, float]) -> None:
        """What is to come, in any unit, in its order."""
        self.costs, self.passed, self.stage, self.now = dict(costs), 0.0, "", 0.0
        self.known = time.perf_counter()

    def at(self, stage: str, share: float) -> None:
        if stage != self.stage:
            self.passed += self.costs.pop(self.stage, 0.0)
            self.stage = stage
        self.now = share * self.costs.get(stage, 0.0)

    @property
    def share(self) -> float | None:
        """Of the whole; None where nothing is known of it."""
        whole = self.passed + sum(self.costs.values())
        return (self.passed + self.now) / whole if whole else None

    @property
    def left(self) -> float | None:
        """Seconds, once enough has passed to tell."""
        share, took = self.share, time.perf_counter() - self.known
        return None if not share or share < SURE or took < 1 else took * (1 - share) / share


def expect(tell: Tell, costs: Mapping[str, float]) -> None:
    """Tell what is to come, if that is asked."""
    asked = getattr(tell, "expect", None)
    if asked is not None:
        asked(costs)


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


class Lines(Course):
    """A line for each stage, and one now and then about its progress; none before so many seconds have passed."""

    def __init__(self, patience: float = 0.0) -> None:
        super().__init__()
        self.patience = patience

    def __call__(self, stage: str, done: float = 0.0) -> None:
        self.at(stage, done)
        now = time.perf_counter()
        if now - self.begun >= self.patience and (not done or now - self.said > EVERY):
            share = f" {100 * done:.0f} %" if done else ""
            left = "" if self.left is None else f", about {duration(self.left)} left"
            print(f"[{now - self.begun:6.1f} s] {stage}{share}{left}", file=sys.stderr, flush=True)
            self.said = now

    said = 0.0


class Bar(Course):
    """One bar over the whole run; over one stage where nothing is known of the others."""

    def __init__(self, bar: Progress) -> None:
        super().__init__()
        self.bar, self.task = bar, bar.add_task("", total=None)

    def __call__(self, stage: str, done: float = 0.0) -> None:
        self.at(stage, done)
        share = self.share if self.share is not None else done
        words = stage if self.left is None else f"{stage}, about {duration(self.left)} left"
        self.bar.update(self.task, description=words, completed=share, total=1.0 if share else None)


@contextlib.contextmanager
def progress(quiet: bool = False, patience: float = 0.0) -> Iterator[Tell]:
    """Yield a function to call at the beginning of each stage and on its way. Writes to stderr, or below a notebook's cell."""
    notebook = "ipykernel" in sys.modules
    if quiet:
        yield silent
        return
    if not sys.stderr.isatty() and not notebook:
        yield Lines(patience)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=not notebook), transient=True) as bar:
        yield Bar(bar)
