"""Numbers that tests share: vectors of a known rank, and images for the tiny ViT."""

from __future__ import annotations

import numpy as np


def correlated(rng: np.random.Generator, samples: int, groups: int, width: int, rank: int | None = None) -> np.ndarray:
    """Vectors with a mean, that live in `rank` dimensions all groups share."""
    rank = groups * width if rank is None else rank
    mixed = rng.standard_normal((samples, rank)) @ rng.standard_normal((rank, groups * width))
    return (mixed + rng.standard_normal(groups * width)).reshape(samples, groups, width)


def batches(count: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 16, 16)).astype(np.float32)
