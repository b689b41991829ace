"""Two processes that write one output, and calibration data that changes while it is read."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from . import QUICK, Row, progress, workplace, wrong
from .images import photo
from .runs import ended, ran, runs, started


def one_output(folder: Path, rng: random.Random) -> str:
    """Two compiles of one model to other widths, their weights beside the file: what is there at the end is one of the two."""
    import time

    import models

    dense = models.save_external(models.vit(), folder / "model.onnx", threshold=0)
    for name, share in (("a", 0.25), ("b", 0.5)):
        (folder / f"{name}.json").write_text(json.dumps({"attention": share, "ffn": share, "round_to": 4}))
    args = [[str(dense), "-o", str(folder / "out.onnx"), "--ratios", str(folder / f"{name}.json"), *QUICK] for name in "ab"]
    begun = time.perf_counter()
    first = started(args[0])
    time.sleep(rng.random() * 0.2)
    second = started(args[1])
    for process in (first, second):
        end = ended(process, begun)
        if why := wrong(end.status, end.said):
            return why
    left = {p.name for p in folder.iterdir()} - {"model.onnx", "model.onnx.data", "a.json", "b.json"}
    if left != {"out.onnx", "out.onnx.data"}:
        return f"left behind: {sorted(left)}"
    verified = ran(["verify", str(dense), str(folder / "out.onnx"), "--quiet"])
    return "" if verified.status == 0 and runs(folder / "out.onnx") else f"the output is a mixture: {verified.said}"


def changing(folder: Path, rng: random.Random) -> str:
    """Images that come, go and are cut while they are read: the others are measured, or one line says why not."""
    import models

    model, photos = models.save(models.vit(), folder / "model.onnx"), folder / "photos"
    photos.mkdir()
    for number in range(400):
        photo(rng, photos / f"{number}.png")
    over = threading.Event()

    def meddle() -> None:
        while not over.is_set():
            path = photos / f"{rng.randrange(400)}.png"
            way = rng.randrange(3)
            if way == 0:
                path.unlink(missing_ok=True)
            elif way == 1:
                photo(rng, path)
            elif path.exists():
                path.write_bytes(path.read_bytes()[: rng.randrange(500)])

    other = threading.Thread(target=meddle)
    other.start()
    end = ran(["calibrate", str(model), str(photos), "-o", str(folder / "m.safetensors"), "--quiet"])
    over.set()
    other.join()
    if end.status == 0 and not (folder / "m.safetensors").exists():
        return "done, and nothing is there"
    return wrong(end.status, end.said, end.seconds)


RACES = {"two writers": one_output, "changing folders": changing}


def run(count: int, seed: int = 0, say: bool = True, names: Sequence[str] = tuple(RACES)) -> Row:
    rng, bad = random.Random(seed), 0
    with workplace() as place:
        for done, name in enumerate(count * tuple(names), start=1):
            folder = place / "work" / "race"
            folder.mkdir()
            why = RACES[name](folder, rng)
            bad += bool(why)
            if why:
                print(f"  {why}", flush=True)
            if say:
                progress("races", done, count * len(names), bad)
            shutil.rmtree(folder)
    return {**dict.fromkeys(names, count), "seed": seed, "bad": bad}
