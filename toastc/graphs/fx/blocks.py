"""Attentions and FFNs of given sizes as torch functions, to be timed."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn import functional

from ...plans.latency import Block


def block_function(block: Block, like: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Runs the block once, on the device and in the type of `like`."""

    def weight(*shape: int) -> torch.Tensor:
        drawn: torch.Tensor = torch.randn(shape, device=like.device, dtype=like.dtype) / shape[-1] ** 0.5
        return drawn

    x = weight(block.rows // block.tokens, block.tokens, block.dim)
    if block.heads:
        wide = [block.heads * block.qk, block.heads * block.qk, block.heads * block.vo]
        into, back = weight(sum(wide), block.dim), weight(block.out, wide[2])

        def attention() -> torch.Tensor:
            q, k, v = (
                part.unflatten(2, (block.heads, -1)).transpose(1, 2) for part in functional.linear(x, into).split(wide, dim=2)
            )
            mixed = functional.scaled_dot_product_attention(q, k, v, scale=0.125)
            return functional.linear(mixed.transpose(1, 2).flatten(2), back)

        return attention
    into, gate, back = (
        weight(block.hidden, block.dim),
        weight(block.hidden if block.gated else 0, block.dim),
        weight(block.out, block.hidden),
    )

    def ffn() -> torch.Tensor:
        hidden = functional.gelu(functional.linear(x, into))
        return functional.linear(hidden * functional.linear(x, gate) if block.gated else hidden, back)

    return ffn


def milliseconds(run: Callable[[], object], like: torch.Tensor, times: int = 5) -> float:
    """The median of a few runs, after a warm-up."""
    wait: Callable[[], None] = torch.cuda.synchronize if like.is_cuda else lambda: None
    found = []
    with torch.no_grad():
        for _ in range(times + 2):
            start = time.perf_counter()
            run()
            wait()
            found.append((time.perf_counter() - start) * 1e3)
    return sorted(found[2:])[times // 2]
