"""Which kernel an attention gets on a GPU, by its sizes, and what it would take to get a faster one.

The rules are those of ONNX Runtime's MultiHeadAttention (CUDA), of torch's scaled_dot_product_attention, and of TensorRT's
fusion of multi-head attention.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SETTINGS = ("ort-cuda fp16", "ort-cuda fp32", "torch fp16", "torch fp32", "tensorrt fp16")
RANKS = {"flash": 0, "fused": 0, "memory-efficient": 1, "math": 2, "unfused": 2}
STEP = 8  # channels: half floats are loaded so many at a time
FP32_TOKENS = 256  # from so many on, ONNX Runtime fuses float32 attention


@dataclass(frozen=True)
class Attention:
    """`biased`: something is added to its scores, a mask or a table of positions. MACs are those of one channel of all heads."""

    name: str
    heads: int
    queries: int
    keys: int
    d_qk: int
    d_v: int
    biased: bool
    qk_macs: int
    v_macs: int


def kernel(a: Attention, setting: str) -> tuple[str, str]:
    """The kernel's name, and why it is no faster one."""
    runtime, dtype = setting.split()
    odd = [f"{name} {size} is no multiple of {STEP}" for name, size in (("d_qk", a.d_qk), ("d_v", a.d_v)) if size % STEP]
    none = "math" if runtime == "torch" else "unfused"
    if runtime == "tensorrt":
        odd += [f"{name} {size} is not in 16..256" for name, size in (("d_qk", a.d_qk), ("d_v", a.d_v)) if not 16 <= size <= 256]
        return (none, odd[0]) if odd else ("fused", "")
    if dtype == "fp32":
        if runtime == "ort-cuda" and max(a.queries, a.keys) < FP32_TOKENS:
            return none, f"float32 is fused from {FP32_TOKENS} tokens on"
        step = 4 if runtime == "torch" else STEP
        wide = next((f"d_{n} {d} is no multiple of {step}" for n, d in (("qk", a.d_qk), ("v", a.d_v)) if d % step), "")
        return (none, wide) if wide else ("memory-efficient", "flash needs half floats")
    if odd:
        return none, odd[0]
    slow = ["something is added to its scores"] if a.biased else []
    slow += [f"d_qk {a.d_qk} and d_v {a.d_v} differ"] if a.d_qk != a.d_v else []
    slow += [f"d_qk {a.d_qk} is over 256"] if a.d_qk > 256 else []
    return ("memory-efficient", slow[0]) if slow else ("flash", "")


def better(a: Attention, setting: str, total: int) -> str:
    """What the next widths with a faster kernel are, and what they cost; empty if none is near."""
    now, why = kernel(a, setting)
    up = [-(-size // STEP) * STEP for size in (a.d_qk, a.d_v)]
    for wide in (replace(a, d_qk=up[0], d_v=up[1]), replace(a, d_qk=max(up), d_v=max(up))):
        then = kernel(wide, setting)[0]
        if RANKS[then] < RANKS[now]:
            cost = (wide.d_qk - a.d_qk) * a.qk_macs + (wide.d_v - a.d_v) * a.v_macs
            return (
                f"{now}, because {why}; d_qk {wide.d_qk} and d_v {wide.d_v} cost {100 * cost / total:+.1f} % MACs and are {then}"
            )
    return ""


def table(before: list[Attention], after: list[Attention], total: int) -> list[dict[str, object]]:
    """A row for each attention and setting; `total` are the MACs that costs are shares of."""
    old = {a.name: a for a in before}
    return [
        {
            "site": a.name,
            "setting": setting,
            "heads": a.heads,
            "d_qk": a.d_qk,
            "d_v": a.d_v,
            "before": kernel(old.get(a.name, a), setting)[0],
            "after": kernel(a, setting)[0],
            "hint": better(a, setting, total),
        }
        for a in after
        for setting in SETTINGS
    ]
