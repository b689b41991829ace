"""Damage done to the bytes of any file. Each kind is a function of a random generator."""

from __future__ import annotations

import random


def flipped(rng: random.Random, data: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((1, 2, 4, 16, 64))):
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def truncated(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def spliced(rng: random.Random, data: bytes) -> bytes:
    """A piece of it once more, somewhere else: over what is there, or between."""
    start, to = rng.randrange(len(data)), rng.randrange(len(data))
    piece = data[start : start + rng.choice((1, 4, 16, 100, 1000))]
    return data[:to] + piece + data[to + rng.choice((0, len(piece))) :]


def without_a_piece(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 4, 16, 100)) :]


def with_noise(rng: random.Random, data: bytes) -> bytes:
    to = rng.randrange(len(data))
    return data[:to] + rng.randbytes(rng.choice((1, 4, 32))) + data[to:]


BYTES = (flipped, truncated, spliced, without_a_piece, with_noise)
