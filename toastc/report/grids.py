"""The grid of tokens before and after merging, drawn over one of the inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..system.vocabulary import Read
from .figures import shown

CELL = 16  # of the drawing's own units


def token_grids(rows: Sequence[Read], photo: str | None) -> str:
    high, wide = rows[0]["patches"]
    made = [picture(f"before: {rows[0]['tokens'][0]} tokens, {high} x {wide}", high, wide, range(high * wide), photo)]
    for row in rows:
        where = "every block" if row["before"] == "*" else f"block {row['before']}" if row["before"].isdigit() else row["before"]
        words = f"{row['merge']}, before {where}: {row['tokens'][1]} tokens"
        if row["grid"]:
            words += f", {row['grid'][0]} x {row['grid'][1]}"
        if row["cells"] is None:
            made.append(f"<figure><figcaption>{shown(words)}; which ones is chosen for each image</figcaption></figure>")
        else:
            made.append(picture(words, high, wide, row["cells"], photo))
    return f'<div class="grids">{"".join(made)}</div>'


def picture(words: str, high: int, wide: int, cells: Sequence[int], photo: str | None) -> str:
    """Lines where two patches are different tokens."""
    behind = (
        f'<image href="{shown(photo)}" width="{wide * CELL}" height="{high * CELL}" preserveAspectRatio="none"/>' if photo else ""
    )
    drawn = "".join(
        f'<line x1="{x1 * CELL}" y1="{y1 * CELL}" x2="{x2 * CELL}" y2="{y2 * CELL}"/>'
        for x1, y1, x2, y2 in edges(high, wide, cells)
    )
    box, words = f"0 0 {wide * CELL} {high * CELL}", shown(words)
    drawing = f'<svg viewBox="{box}" role="img" aria-label="{words}">{behind}{drawn}</svg>'
    return f"<figure>{drawing}<figcaption>{words}</figcaption></figure>"


def edges(high: int, wide: int, cells: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    for y in range(high):
        for x in range(wide):
            own = cells[y * wide + x]
            if x + 1 < wide and cells[y * wide + x + 1] != own:
                yield x + 1, y, x + 1, y + 1
            if y + 1 < high and cells[(y + 1) * wide + x] != own:
                yield x, y + 1, x + 1, y + 1
