"""How many cores there are, and how a model that runs on many inputs makes the most of them."""

from __future__ import annotations

import os

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LANES = min(CORES, 4)  # runs beside each other: cores wait for each other at every node of one that they share
