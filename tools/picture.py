"""The picture of accuracies at the top of the README: `docs/accuracy.svg`, drawn from `benchmarks/accuracy-cifar.json` alone.

    python tools/picture.py

Every line is one way to prune the same model, every point one row of the file: the MACs that were really left, and the accuracy
that was measured. Lines are labelled at their ends. The picture brings its own background, so that it can be read on a light and
on a dark page. Nothing but the standard library is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FIGURES, PICTURE = ROOT / "benchmarks" / "accuracy-cifar.json", ROOT / "docs" / "accuracy.svg"
TARGETS = (0.75, 0.6, 0.5, 0.35)

WIDTH, HEIGHT = 900, 560
LEFT, RIGHT, TOP, BOTTOM = 66, 622, 88, 478  # of the plot; the labels stand to the right of it
MOST, LEAST = 0.78, 0.31  # MACs kept, at the left and at the right edge
LABELS, APART = 648, 20  # where labels begin, and how far apart their lines of text are at least
INK, DIM, GRID = "#1c2126", "#5c6670", "#e3e8ec"


@dataclass(frozen=True)
class Line:
    recipe: str  # in the file
    label: str
    colour: str
    width: float = 2.2


LINES = (
    Line("magnitude", "magnitude", "#a7adb4"),
    Line("torch-pruning", "Torch-Pruning", "#6d747c"),
    Line("toast", "ToaSt, static", "#9dbcd8"),
    Line("vbp", "VBP", "#74a5cf"),
    Line("synthetic", "default, without data", "#1f4e79"),
    Line("corp", "CORP", "#3b7bb0"),
    Line("default", "default, calibrated", "#e8743b", 4.5),
)
Point = tuple[float, float]


def main() -> None:
    PICTURE.write_text(drawn(json.loads(FIGURES.read_text())), encoding="utf-8")
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1000:.0f} kB")


def drawn(figures: Mapping[str, Any]) -> str:
    """The whole picture as text."""
    rows = {(row["recipe"], row["target"]): row for row in figures["rows"]}
    lines = {line: [rows[line.recipe, target] for target in TARGETS] for line in LINES}
    title = f"Top-1 accuracy of a {figures['task']}, pruned without any training"
    worst = max(row["paired_se"] for found in lines.values() for row in found)
    spread = f"Standard errors of the differences to the dense model: {100 * worst:.1f} points at most."
    note = f"First {figures['test']:,} test images. {spread} Without data: channels alone."
    parts = [*frame(title, note), *axes(), *dense(figures["dense"])]
    for line, found in lines.items():
        parts += curve(line, [place(row["macs"], row["accuracy"]) for row in found])
    parts += values([(place(row["macs"], row["accuracy"]), row["accuracy"]) for row in lines[LINES[-1]]])
    parts += labels({line: found[-1] for line, found in lines.items()})
    return "\n".join([*parts, "</svg>", ""])


def place(macs: float, accuracy: float) -> Point:
    """Where a model stands: the fewer MACs it has, the further to the right."""
    return LEFT + (RIGHT - LEFT) * (MOST - macs) / (MOST - LEAST), BOTTOM - (BOTTOM - TOP) * accuracy


def text(x: float, y: float, words: str, size: int = 14, colour: str = INK, anchor: str = "start", weight: int = 400) -> str:
    look = f'font-size="{size}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(words)}</text>'


def stroke(start: Point, end: Point, colour: str, width: float = 1, dashes: str = "none") -> str:
    ends = 'x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"'.format(*start, *end)
    return f'<line {ends} stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"/>'


def frame(title: str, note: str) -> Iterator[str]:
    about = f'role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif"'
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" {about}>'
    yield f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="14" fill="#fdfdfe" stroke="#d8dee4"/>'
    yield text(24, 38, title, 19, weight=600)
    yield text(24, HEIGHT - 16, note, 12, DIM)


def axes() -> Iterator[str]:
    for share in range(0, 101, 20):
        _, y = place(MOST, share / 100)
        yield stroke((LEFT, y), (RIGHT, y), GRID)
        yield text(LEFT - 10, y + 5, f"{share} %", 13, DIM, "end")
    for target in TARGETS:
        x, y = place(target, 0)
        yield stroke((x, y), (x, y + 6), DIM)
        yield text(x, y + 23, f"{100 * target:.0f} %", 13, DIM, "middle")
    yield text((LEFT + RIGHT) / 2, BOTTOM + 45, "multiply-accumulates (MACs) that are kept", 13, DIM, "middle")


def dense(accuracy: float) -> Iterator[str]:
    _, y = place(MOST, accuracy)
    yield stroke((LEFT, y), (RIGHT, y), INK, 1.2, "6 5")
    yield text(LABELS, y - 9, f"dense {100 * accuracy:.1f} %", 14, INK)
    yield stroke((RIGHT + 4, y), (LABELS - 6, y - 14), INK, 0.8)


def curve(line: Line, points: Sequence[Point]) -> Iterator[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="{line.width}" stroke-linejoin="round"/>'
    for x, y in points:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{line.width + 1.3:.1f}" fill="{line.colour}"/>'


def values(points: Sequence[tuple[Point, float]]) -> Iterator[str]:
    """The figures themselves, above the points."""
    for (x, y), accuracy in points:
        yield text(x, y - 16, f"{100 * accuracy:.1f}", 13, "#b4511c", "middle", 600)


def labels(ends: Mapping[Line, Mapping[str, Any]]) -> Iterator[str]:
    """Names and last figures, each as near to the end of its line as those below it allow."""
    below = float(BOTTOM + APART)
    for line, row in sorted(ends.items(), key=lambda end: end[1]["accuracy"]):
        x, y = place(row["macs"], row["accuracy"])
        at = min(y, below - APART)
        below = at
        strong = line is LINES[-1]
        yield stroke((x + line.width + 5, y), (LABELS - 6, at), line.colour, 1)
        words = f"{line.label}  {100 * row['accuracy']:.1f} %"
        yield text(LABELS, at + 5, words, 15 if strong else 14, "#b4511c" if strong else INK, weight=600 if strong else 400)


if __name__ == "__main__":
    main()
