"""The first inputs of a graph, kept until there are enough to choose by; shared by graphs that differ in their batch alone."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ....plans.plan import Plan
from ....system.arrays import as_array

PATIENCE = 16  # times the inputs that are wanted may come before it is given up
TWICE = 2  # batches at least: one to judge by, where a graph takes no other sizes


class Observed:
    """Inputs by name, as they came, each once: what is fitted on must tell nothing of what it is judged by. Then the plan that
    was found.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted, self.count, self.came = wanted, 0, 0
        self.inputs: list[dict[str, torch.Tensor]] = []
        self.known: set[bytes] = set()
        self.plan: Plan | None = None
        self.over = False  # nothing more is to be had of it: a plan was found, or can not be
        self.lock = threading.Lock()
        self.choosing = threading.Lock()

    def add(self, given: dict[str, torch.Tensor]) -> bool:
        """Copies those that are new; are there enough?"""
        batch = len(next(iter(given.values())))
        prints = fingerprints(given, batch)
        with self.lock:
            self.came += batch
            self.wanted = max(self.wanted, TWICE * batch)
            new = [n for n, each in enumerate(prints) if each not in self.known and prints.index(each) == n]
            if new and self.count < self.wanted:
                self.known.update(prints)
                whole = len(new) == batch or len(prints) < batch
                self.inputs.append({k: v.detach().clone() if whole else v.detach()[new] for k, v in given.items()})
                self.count += batch if whole else len(new)
            return self.count >= self.wanted

    @property
    def in_vain(self) -> bool:
        return self.came >= PATIENCE * self.wanted

    def finish(self, plan: Plan | None) -> None:
        self.plan, self.over, self.inputs = plan, True, []


def fingerprints(given: dict[str, torch.Tensor], batch: int) -> list[bytes]:
    """Of every input, where tensors are of so many; else of all together."""
    arrays = [np.ascontiguousarray(as_array(value.detach())) for value in given.values()]
    rows = [[a[n] for a in arrays] for n in range(batch)] if all(a.shape[:1] == (batch,) for a in arrays) else [arrays]
    return [hashlib.blake2b(b"".join(part.tobytes() for part in row), digest_size=16).digest() for row in rows]


KNOWN: weakref.WeakValueDictionary[Any, Observed] = weakref.WeakValueDictionary()  # by what a graph is and what is asked
NUMBERED: dict[int, int] = {}
SESSIONS: dict[int, weakref.WeakSet[Observed]] = {}  # those of the graphs of one torch.compile


def number_of(session: int) -> int:
    """How many graphs of it had a number before."""
    NUMBERED[session] = NUMBERED.get(session, -1) + 1
    return NUMBERED[session]


def observed(key: Any, session: int, wanted: int) -> Observed:
    """What is seen of this graph."""
    found = KNOWN.get(key) if key is not None else None
    if found is None:
        found = Observed(wanted)
        if key is not None:
            KNOWN[key] = found
    SESSIONS.setdefault(session, weakref.WeakSet()).add(found)
    return found


def together(session: int) -> Sequence[Observed]:
    """Of all graphs of a torch.compile that ran so far."""
    return [each for each in SESSIONS.get(session, ()) if each.count or each.plan is not None]
