"""Numbers as people read them."""

from __future__ import annotations


def human(number: float | None, unit: str = "") -> str:
    if number is None:
        return "?"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.2f} {letter}{unit}"
    return f"{number:.0f} {unit}".rstrip()


def change(before: float, after: float | None) -> str:
    return f"{100 * (after - before) / before:+.1f} %" if before and after is not None else ""
