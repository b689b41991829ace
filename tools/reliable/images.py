"""Photos of every size and mode, and damaged ones among them: the sound ones are all measured, the others counted."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from . import ROOT, Row, workplace

MODES = ("RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr", "LAB")
FORMATS = {  # which files can hold a mode
    "RGB": ("png", "jpg", "webp", "bmp", "tiff", "ppm", "gif"),
    "L": ("png", "jpg", "tiff", "bmp"), "RGBA": ("png", "webp", "tiff"),
    "LA": ("png",), "P": ("png", "gif", "bmp"), "1": ("png", "tiff"), "CMYK": ("jpg", "tiff"), "I;16": ("png", "tiff"),
    "I": ("tiff",), "F": ("tiff",), "YCbCr": ("jpg", "tiff"), "LAB": ("tiff",),
}  # fmt: skip
SIDES = (1, 2, 3, 8, 15, 16, 17, 31, 64, 100, 200)


def photo(rng: random.Random, path: Path, mode: str = "RGB", sides: tuple[int, int] = (24, 32)) -> None:
    from PIL import Image

    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (*sides, 3), np.uint8)
    image: Any = Image.fromarray(noise)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    elif mode == "LAB":
        image = Image.frombytes("LAB", image.size, image.tobytes())
    else:
        image = image.convert("L").convert(mode) if mode in ("I", "F", "LA") else image.convert(mode)
    image.save(path)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Cut off, emptied, or with other bytes in it; the last may still be an image."""
    way = rng.randrange(4)
    if way == 0:
        return data[: rng.randrange(1, max(2, len(data) // 2))]
    if way == 1:
        return b""
    made = bytearray(data)
    for _ in range(rng.choice((1, 10, 100))):
        made[rng.randrange(min(len(made), 100) if way == 2 else len(made))] = rng.randrange(256)
    return bytes(made)


def fill(folder: Path, count: int, rng: random.Random) -> dict[str, int]:
    made = {"sound": 0, "cut or empty": 0, "scrambled": 0}
    for number in range(count):
        mode = rng.choice(MODES)
        path = folder / f"{number}.{rng.choice(FORMATS[mode])}"
        photo(rng, path, mode, (rng.choice(SIDES), rng.choice(SIDES)))
        if rng.random() < 0.2:
            before = path.read_bytes()
            path.write_bytes(after := damaged(rng, before))
            made["cut or empty" if len(after) < len(before) else "scrambled"] += 1
        else:
            made["sound"] += 1
    return made


def run(count: int, seed: int = 0, say: bool = True) -> Row:
    import models

    rng = random.Random(seed)
    with workplace() as place:
        model = models.save(models.vit(), place / "work" / "model.onnx")
        photos = place / "work" / "photos"
        photos.mkdir()
        made = fill(photos, count, rng)
        if say:
            print(f"images: {made}", flush=True)
        since = time.perf_counter()
        args = ["calibrate", str(model), str(photos), "-o", str(place / "work" / "m"), "--json", "--quiet"]
        end = subprocess.run(
            [sys.executable, "-m", "toastc", *args], capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        seconds = time.perf_counter() - since
    read = json.loads(end.stdout)["images"] if end.returncode == 0 else 0
    notes = json.loads(end.stdout)["notes"] if end.returncode == 0 else []
    fine = end.returncode == 0 and end.stderr == "" and made["sound"] <= read <= count - made["cut or empty"] // 2
    if not fine:
        print(f"  {end.returncode}: {end.stderr[-500:]}", flush=True)
    skipped = [n.split(" could")[0] for n in notes if "could not be read" in n]
    said = {"measured": read, "note": skipped[0] if skipped else "", "seconds": round(seconds), "bad": int(not fine)}
    return {"images": count, "seed": seed, **made, **said}
