"""Images nobody took: overlapping shapes of all sizes with textures and shading, on textured ground.

Photographs are scale free and made of things that hide each other; so are these. Moments taken on them are far better
than those of noise, and need no data.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np

from ..system.errors import ToastcError
from .data import Batch
from .images import IMAGENET_MEAN, IMAGENET_STD

SHAPES = 40  # in one image
TEXTURES = 64


class Synthetic:
    """Batches of `count` images for a model with one image input; the same ones every time for one seed."""

    def __init__(self, inputs: Mapping[str, tuple[int | None, ...]], count: int = 512, seed: int = 0, batch: int = 32) -> None:
        if not self.fits(inputs):
            raise ToastcError("synthetic images fit models with one input of images; give data (--calibrate DATA) for this one")
        self.name, self.notes = "synthetic images", [f"no data was given: {count} synthetic images stood in for it"]
        (self.input, sizes), self.limit = next(iter(inputs.items())), count
        self.channels, self.side = sizes[1] or 3, sizes[2] or 224
        self.seed, self.batch = seed, sizes[0] or batch
        self.limit -= self.limit % self.batch if sizes[0] else 0
        self.size = self.count = self.limit
        self.shard = (0, 1)

    @staticmethod
    def fits(inputs: Mapping[str, tuple[int | None, ...]]) -> bool:
        """Does the model take images, and nothing else?"""
        sizes = next(iter(inputs.values()), ())
        return len(inputs) == 1 and len(sizes) == 4 and sizes[1] in (1, 3) and sizes[2] == sizes[3]

    def part(self, rank: int, count: int) -> Synthetic:
        """The batches of one of several processes."""
        own = copy.copy(self)
        own.shard = (rank, count)
        return own

    @cached_property
    def bank(self) -> np.ndarray:
        return textures(np.random.default_rng(self.seed), TEXTURES, self.side)

    def __iter__(self) -> Iterator[Batch]:
        colours = (IMAGENET_MEAN, IMAGENET_STD) if self.channels == 3 else ((0.5,), (0.25,))
        mean, std = (np.array(v, np.float32)[:, None, None] for v in colours)
        for number, start in enumerate(range(0, self.limit, self.batch)):
            if number % self.shard[1] == self.shard[0]:
                rng, count = np.random.default_rng([self.seed, number]), min(self.batch, self.limit - start)
                images = np.stack([scene(rng, self.bank)[: self.channels] for _ in range(count)])
                yield {self.input: ((images - mean) / std).astype(np.float32)}


def textures(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """[count, 3, size, size]: noise whose power falls with frequency as in photographs, its colours alike."""
    frequency = np.fft.fftfreq(size)
    fall = 1 / np.maximum(np.hypot(frequency[:, None], frequency[None]), 1 / size)
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((count, 3, size, size))) * fall).real
    alike = np.linalg.cholesky(np.array([[1, 0.9, 0.8], [0.9, 1, 0.9], [0.8, 0.9, 1]]))
    noise = np.einsum("ij,njhw->nihw", alike, noise)
    noise /= noise.std(axis=(2, 3), keepdims=True)
    made: np.ndarray = 0.25 * noise + 0.1 * rng.standard_normal((count, 3, 1, 1))
    return made.astype(np.float32)


def scene(rng: np.random.Generator, bank: np.ndarray) -> np.ndarray:
    """One image in [0, 1]: ellipses and rectangles, sizes distributed as 1 / size^3, the later hide the earlier."""
    size = bank.shape[-1]
    image = 0.5 * (bank[rng.integers(len(bank))] + 0.45) + 0.5 * rng.random((3, 1, 1)).astype(np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    radii = 1 / np.sqrt(rng.uniform(1 / (0.6 * size) ** 2, 1 / (0.04 * size) ** 2, SHAPES))
    for radius in radii:
        (cx, cy), turn, flat = rng.uniform(0, size, 2), rng.uniform(0, np.pi), rng.uniform(0.4, 1)
        u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
        v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        round_one = rng.random() < 0.6
        inside = u**2 + (v / flat) ** 2 < radius**2 if round_one else (np.abs(u) < radius) & (np.abs(v) < flat * radius)
        colour = np.clip(rng.random() + 0.35 * rng.random() * rng.standard_normal(3), 0, 1)
        shade = 1 + rng.uniform(-0.8, 0.8) * u[inside] / size
        image[:, inside] = colour[:, None] * shade + rng.uniform(0, 1.2) * bank[rng.integers(len(bank))][:, inside]
    return np.asarray(np.clip(image, 0, 1))
