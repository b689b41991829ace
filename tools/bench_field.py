"""Architectures from the field: how much of their MACs is in what can be cut, and what half of those widths brings on a CPU.

    python tools/bench_field.py [--models convnext_tiny swinv2_tiny_window8_256 ...]

timm's, at their own size, with random weights. The share is that of `toastc inspect`, through torch.export. `half` is a file
with every width halved (`--recipe magnitude --for ort-cpu`), proven, beside the whole one for the same runtime, taking turns at
a batch of one. Writes benchmarks/field-cpu.json and the table in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import toastc

KINDS = {
    "hybrid": "coatnet_pico_rw_224 efficientformerv2_s0 efficientformer_l1 nextvit_small mobilevit_xxs mobilevitv2_050 "
    "maxvit_pico_rw_256 tiny_vit_5m_224 efficientvit_b0 efficientvit_m0 fastvit_t8 iformer_t swiftformer_xs "
    "levit_128s repvit_m0_9 edgenext_xx_small",
    "convolutions": "convnext_atto convnextv2_atto poolformer_s12",
    "windowed": "swinv2_tiny_window8_256 davit_tiny coat_tiny",
    "plain": "pvt_v2_b0 beit3_base_patch16_224 eva02_base_patch14_224 xcit_nano_12_p16_224 gmlp_s16_224 deit_small_patch16_224",
}
HALF = {"attention": {"qk": 0.5, "vo": 0.5}, "ffn": 0.5}
ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- field -->", "<!-- /field -->"


def measured(name: str, kind: str, folder: Path) -> dict[str, Any]:
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    size = model.default_cfg["input_size"]
    found = toastc.inspect(model, example_inputs=(torch.zeros(2, *size),))
    row: dict[str, Any] = {"name": name, "kind": kind, "macs": found["macs"], "share": found["share"], "whole": found["whole"]}
    dense, whole, half = (folder / f"{name}.{what}.onnx" for what in ("dense", "whole", "half"))
    write = partial(
        torch.onnx.export,
        model,
        f=dense,
        dynamo=True,
        opset_version=20,
        verbose=False,
        input_names=["image"],
        external_data=False,
    )
    try:
        write((torch.zeros(2, *size),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as problem:  # noqa: BLE001  exporters raise anything
        return row | {"problem": f"torch.onnx.export fails ({type(problem).__name__})"}
    toastc.prune(dense, output=whole, recipe="magnitude", runtime="ort-cpu")
    report = toastc.prune(dense, HALF, output=half, recipe="magnitude", runtime="ort-cpu").report
    assert report.verified is not None
    (bench,) = toastc.bench(whole, half, batches=(1,), memory=False)["rows"]
    row |= {
        "after": report.after.macs / report.before.macs,
        "proof": report.verified["error"],
        "dense ms": bench["dense"]["median_ms"],
    }
    return row | {"speedup": bench["speedup"], "iqr": bench["speedup_iqr"]}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| architecture | kind | MACs | in what can be cut | left at half widths | times as fast | proof |",
             "|---|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for r in rows:
        ends = [r.get("problem", ""), "", ""] if "after" not in r else [
            f"{r['after']:.0%}", f"{r['speedup']:.2f} ({r['iqr'][0]:.2f} to {r['iqr'][1]:.2f})", f"{r['proof']:.0e}"]  # fmt: skip
        lines.append(f"| {r['name']} | {r['kind']} | {r['macs'] / 1e9:.2f} G | {r['share']:.0%} | {' | '.join(ends)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[name for names in KINDS.values() for name in names.split()])
    args = parser.parse_args()
    kinds = {name: kind for kind, names in KINDS.items() for name in names.split()}
    file, page = ROOT / "benchmarks" / "field-cpu.json", ROOT / "docs" / "benchmarks.md"
    rows = {r["name"]: r for r in (json.loads(file.read_text()) if file.exists() else [])}
    for name in args.models:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                rows[name] = measured(name, kinds.get(name, ""), Path(folder))
            except toastc.ToastcError as problem:
                rows[name] = rows.get(name, {"name": name}) | {"problem": str(problem).splitlines()[0]}
        print(f"{name}: {time.perf_counter() - began:.0f} s, {rows[name]}", file=sys.stderr, flush=True)
        every = [rows[n] for n in [*kinds, *rows] if n in rows]
        file.write_text(json.dumps(list({r["name"]: r for r in every}.values()), indent=1) + "\n")
    text = page.read_text()
    made = f"{BEGIN}\n{table(json.loads(file.read_text()))}\n{END}"
    page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: made, text, flags=re.DOTALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
