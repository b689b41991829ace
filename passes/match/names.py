"""Stable names of sites from the module paths of their linears."""

from __future__ import annotations

from collections.abc import Sequence


def site_name(paths: Sequence[str], suffix: str) -> str:
    """`blocks.0.attn` from `blocks.0.attn.qkv` and `blocks.0.attn.proj`; `layer.0` gets a suffix; "" if unknown."""
    known = [p.split(".") for p in paths if p]
    if not known:
        return ""
    common = known[0][:-1] if len(known) == 1 else []
    if len(known) > 1:
        for parts in zip(*known, strict=False):
            if len(set(parts)) > 1:
                break
            common.append(parts[0])
        if common == known[0]:
            common = common[:-1]
    if not common or common[-1].isdigit():
        common = [*common, suffix]
    return ".".join(common)


def unique(names: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Unnamed sites are numbered by kind in graph order; a name that comes twice gets `#2`."""
    result: list[str] = []
    counts: dict[str, int] = {}
    order = {"attention": 0, "ffn": 0}
    for name, kind in zip(names, kinds, strict=True):
        name = name or f"blocks.{order[kind]}.{'attn' if kind == 'attention' else 'mlp'}"
        order[kind] += 1
        counts[name] = counts.get(name, 0) + 1
        result.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return result
