"""Damage done to ratio files: to the JSON they hold, and to their bytes."""

from __future__ import annotations

import json
import random
from typing import Any

from .mutate_bytes import BYTES

BASES: tuple[Any, ...] = (
    {"attention": {"qk": 0.5, "vo": 0.5, "heads": 0.0}, "ffn": 0.5, "sites": {"blocks.0.*": 0}, "round_to": 8},
    {"attention": 0.25, "ffn": [0.5, 0.25], "round_to": 4},
    {"attention": {"heads": 0.5}, "sites": {"blocks.1.mlp": {"hidden": 0.9, "inputs": 0.25}, "*.attn": 0.3}, "round_to": 1},
    {"ffn": 0.5, "tokens": [{"before": "blocks.1", "merge": "horizontal"}]},
    {"tokens": [{"before": "blocks.0", "merge": "vertical"}, {"before": "blocks.1", "merge": "horizontal", "keep": 2}]},
)
ODD: tuple[Any, ...] = (
    None, True, False, 0, -0.0, 1, 1.0, -1, 0.999999, 1e-300, 1e308, 10**400, 2**63, float("nan"), float("inf"), "", "0.5", "*",
    "[", "\x00", "\ud800", "<b>", "a\nb\x1b[0m", "x" * 10_000, [], [[]], [0.5], [0.5, None], {}, {"": 0}, {"qk": 0.5},
    {"hidden": {"hidden": 0.5}}, [{"before": 3}], {"blocks.0.*": {"qk": [0.5]}},
)  # fmt: skip


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    keys = list(data) if isinstance(data, dict) else list(range(len(data))) if isinstance(data, list) else []
    return [(data, key) for key in keys] + [place for key in keys for place in places(data[key])]


def edited(rng: random.Random, data: Any) -> Any:
    for _ in range(rng.choice((1, 1, 2, 4))):
        found = places(data)
        if not found or rng.random() < 0.03:
            data = rng.choice(ODD)
            continue
        inside, key = rng.choice(found)
        way = rng.random()
        if way < 0.5:
            inside[key] = json.loads(json.dumps(rng.choice(ODD)))
        elif way < 0.65:
            del inside[key]
        elif way < 0.75:
            inside[key] = rng.random() * rng.choice((1, 1, 1, 10, -1))
        elif way < 0.85:
            inside[key] = [inside[key]] * rng.choice((1, 2, 3)) if rng.random() < 0.5 else {"qk": inside[key]}
        elif isinstance(inside, dict):
            inside[rng.choice(("qk", "hidden", "heads", "ffn", "sites", "blocks.*", "tokens", "keep", "", "x" * 200))] = inside[
                key
            ]
    return data


def mutated(rng: random.Random) -> tuple[str, bytes]:
    base = json.loads(json.dumps(rng.choice(BASES)))
    if rng.random() < 0.65:
        return "json", json.dumps(edited(rng, base)).encode("utf-8", "surrogatepass")
    change = rng.choice(BYTES)
    return change.__name__, change(rng, json.dumps(base).encode())
