"""The picture of what a run costs: `docs/cost.svg`, drawn from `benchmarks/cost-cpu.json` alone.

    python tools/picture_cost.py

Four plots: seconds and memory, against the parameters of the model and against the number of images. Both axes of each are
logarithmic: what grows in proportion is a straight line of one slope. Beside the run stands plain inference of the same images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from picture import DIM, GRID, INK, Point, stroke, text

ROOT = Path(__file__).resolve().parent.parent
FIGURES, PICTURE = ROOT / "benchmarks" / "cost-cpu.json", ROOT / "docs" / "cost.svg"
WIDTH, HEIGHT = 900, 640
WIDE, HIGH = 330, 200  # of a plot
RUN, PLAIN = "#e8743b", "#74a5cf"
NAMES = {"deit_small": "DeiT-S", "deit_base": "DeiT-B", "vit_large": "ViT-L", "vit_huge": "ViT-H", "swin_tiny": "Swin-T"}
Row = Mapping[str, Any]
Series = tuple[str, str, list[tuple[float, float, str]]]  # what it is, its colour, its points with their labels


@dataclass(frozen=True)
class Plot:
    """A rectangle with logarithmic axes that hold all points."""

    left: float
    top: float
    title: str
    unit: str
    series: Sequence[Series]

    def place(self, x: float, y: float) -> Point:
        across, up = self.span(0), self.span(1)
        return (
            self.left + WIDE * math.log(x / across[0]) / math.log(across[1] / across[0]),
            self.top + HIGH - HIGH * math.log(y / up[0]) / math.log(up[1] / up[0]),
        )

    def span(self, axis: int) -> tuple[float, float]:
        every = [point[axis] for _, _, points in self.series for point in points]
        return min(map(float, every)) / 2, max(map(float, every)) * 1.5

    def drawn(self) -> Iterator[str]:
        yield text(self.left, self.top - 14, self.title, 15, weight=600)
        yield stroke((self.left, self.top + HIGH), (self.left + WIDE, self.top + HIGH), DIM)
        for value in ticks(*self.span(1)):
            _, y = self.place(self.span(0)[0], value)
            yield stroke((self.left, y), (self.left + WIDE, y), GRID)
            yield text(self.left - 8, y + 4, f"{value:g} {self.unit}", 12, DIM, "end")
        for number, (name, colour, points) in enumerate(self.series):
            placed = [self.place(x, y) for x, y, _ in points]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
            yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
            for (x, y), (_, _, label) in zip(placed, points, strict=True):
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
                if not number:
                    yield text(x, self.top + HIGH + 20, label, 12, DIM, "middle")
            (x, y), up, anchor = (placed[0], 18, "start") if number else (placed[-1], -10, "end")
            yield text(x, y + up, name, 13, colour, anchor, 600)


def ticks(least: float, most: float) -> list[float]:
    """Ones, and twos and fives where there are few of them."""
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    ones = [10.0**n for n in powers if least <= 10.0**n <= most]
    return ones if len(ones) > 2 else [value for n in powers for m in (1, 2, 5) if least <= (value := m * 10.0**n) <= most]


def seconds(row: Row) -> float:
    return float(median(turn["seconds"] for turn in row["turns"]))


def inference(row: Row) -> float:
    return float(median(turn["inference"] for turn in row["turns"]))


def memory(row: Row) -> float:
    return float(max(turn["peak"] for turn in row["turns"]) - row["file"]) / 1e9


def drawn(figures: Mapping[str, Any]) -> str:
    rows = [row for row in figures["rows"] if row["images"]]
    plain = [row for row in rows if row["images"] == 64 and not row["model"].startswith("swin")]
    sizes = sorted(plain, key=lambda row: row["file"])
    counts = sorted((row for row in rows if row["model"] == "deit_small"), key=lambda row: row["images"])
    title = "What a run costs: toastc --target macs=0.6 --calibrate photos/"
    about = f'role="img" aria-label="{title}" font-family="system-ui, sans-serif"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" {about}>',
             f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="14" fill="#fdfdfe" stroke="#d8dee4"/>',
             text(24, 38, title, 19, INK, weight=600)]  # fmt: skip
    for top, what, unit in ((96, "time", "s"), (372, "memory", "GB")):
        for left, by, some in ((80, "by parameters, 64 images", sizes), (530, "by images, DeiT-S", counts)):
            labels = [NAMES[row["model"]] if some is sizes else str(row["images"]) for row in some]
            across = [row["file"] / 4e6 if some is sizes else row["images"] for row in some]
            read = seconds if unit == "s" else memory
            series: list[Series] = [("toastc", RUN, list(zip(across, map(read, some), labels, strict=True)))]
            if unit == "s":
                series.append(("plain inference", PLAIN, list(zip(across, map(inference, some), labels, strict=True))))
            parts += Plot(left, top, f"{what} {by}", unit, series).drawn()
    parts.append(
        text(
            24, HEIGHT - 14, f"{figures['surroundings']['cores']} cores, random weights; memory beyond the model's file.", 12, DIM
        )
    )
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    PICTURE.write_text(drawn(json.loads(FIGURES.read_text())), encoding="utf-8")
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
