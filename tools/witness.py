"""Does a change of the code change what toastc makes? Digests of plans and bytes, before and after.

    python tools/witness.py make FOLDER               export the models once
    python tools/witness.py look FOLDER -o a.json     what today's code makes of them
    python tools/witness.py compare a.json b.json     and what of it is no longer the same

Every row is one model and one request. A file's row holds the digest of its bytes, of its plan and of the words that the
report says beside numbers; a module's holds its plan, its tensors and its outputs. Random numbers follow from fixed seeds, and
everything runs on one thread, so that equal code gives equal digests. Errors are rows as well: their words are the digest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from reliable import RATIOS as HALF
from zoo_exports import make_variant, quiet
from zoo_models import FAMILIES

import toastc

FORMS = ("plain", "float16", "gemm", "transposed", "shared_bias", "tied")
ZOO = {  # families, and the ways they were exported in
    "deit_tiny": ("dynamo20-dyn", "dynamo23-dyn", "ts17-dyn", "onnxslim", "ort-dyn"), "swin_tiny": ("dynamo20-dyn", "ts17"),
    "eva02_tiny": ("dynamo20-dyn",), "dinov2": ("dynamo18",), "vit_relpos_small": ("dynamo20-dyn",),
    "xcit_tiny": ("dynamo20-dyn",), "hf_vit_eager": ("ts17-dyn",), "hf_bert": ("dynamo20-dyn",),
    "torch_encoder": ("dynamo20-dyn",), "toy_gqa": ("dynamo23-dyn",), "toy_packed": ("dynamo20-dyn",),
    "toy_einsum": ("dynamo20-dyn",), "toy_talking": ("dynamo20-dyn",), "levit": ("dynamo20-dyn",),
    "vit_qknorm": ("dynamo20-dyn",), "pvt_v2": ("dynamo20-dyn",),
}  # fmt: skip
MODULES = (
    "deit_tiny", "swin_tiny", "eva02_tiny", "hf_vit_sdpa", "torch_encoder", "toy_gqa", "toy_packed", "sam_vit", "xcit_tiny",
)  # fmt: skip
ASKED: dict[str, dict[str, Any]] = {  # of the small DeiT and of the tiny ViT, beside what all models are asked
    "default": {"target": "macs=0.6"}, "params": {"target": "params=0.6"}, "calibrated": {"target": "macs=0.6", "data": True},
    "tokens free": {"target": "macs=0.6", "data": True, "allow": "channels,tokens"}, 
    "svd": {"target": "macs=0.7", "recipe": "svd"}, "vbp": {"target": "macs=0.7", "recipe": "vbp", "data": True},
    "corp": {"ratios": HALF, "recipe": "corp", "data": True},
    "toast": {"ratios": {**HALF, "ffn": {"hidden": 0.5, "inputs": 0.25}}, "recipe": "toast", "data": True},
    "toast-image": {"ratios": HALF, "recipe": "toast-image"}, "toast-batch": {"ratios": HALF, "recipe": "toast-batch"},
    "geometric-median": {"ratios": HALF, "recipe": "geometric-median"},
    "heads": {"ratios": {"attention": {"heads": 0.5, "qk": 0.25}, "ffn": 0.5}, "recipe": "magnitude"},
    "merged": {"tokens": "h1", "ratios": HALF, "recipe": "magnitude"}, "merged alike": {"tokens": "h1:1"},
    "bipartite": {"tokens": "t:3", "ratios": HALF, "recipe": "magnitude"},
    "passes": {"passes": "score-weights{by=l1},share-scores,plan-ratios,fold-biases", "ratios": HALF},
    "ort-cpu": {"ratios": HALF, "recipe": "magnitude", "runtime": "ort-cpu"},
    "ort-cuda": {"ratios": HALF, "recipe": "magnitude", "runtime": "ort-cuda", "dtype": "fp16"},
    "int8": {"target": "macs=0.7", "data": True, "runtime": "ort-cpu", "quantize": "int8"},
    "tensorrt int8": {"quantize": "int8", "runtime": "tensorrt"}, "bf16": {"dtype": "bf16"},
    "dry": {"target": "macs=0.6", "recipe": "magnitude", "dry_run": True}, "nothing": {"ratios": 0},
    "too much": {"target": "macs=0.01", "recipe": "magnitude"}, "no such recipe": {"ratios": 0.5, "recipe": "none"},
}  # fmt: skip
OF_MODULES = (
    "default", "calibrated", "toast", "toast-image", "heads", "merged", "merged alike", "bipartite", "taylor", "too much",
)  # fmt: skip
ASKED_OF_MODULES = {**ASKED, "taylor": {"ratios": HALF, "recipe": "taylor", "data": True}}
ALL = {"magnitude": {"ratios": HALF, "recipe": "magnitude"}}


def make(folder: Path) -> None:
    import models

    folder.mkdir(parents=True, exist_ok=True)
    for form in FORMS:
        models.save(models.vit(form), folder / f"vit.{form}.onnx")
    for name, variants in ZOO.items():
        for variant in variants:
            if not (folder / f"{name}.{variant}.onnx").exists():
                with quiet():
                    make_variant(FAMILIES[name], FAMILIES[name].small(), variant, folder)


def rows(folder: Path) -> Iterator[tuple[str, Callable[[], dict[str, str]]]]:
    for path in sorted(folder.glob("*.onnx")):
        rich = path.stem in ("vit.plain", "deit_tiny.dynamo20-dyn")
        for asked, options in (ALL | ASKED if rich else ALL).items():
            yield f"{path.stem}, {asked}", partial(of_file, path, folder / "out", dict(options))
    for name in MODULES:
        for asked in (*ALL, *(OF_MODULES if name == "deit_tiny" else ())):
            yield f"{name}, module, {asked}", partial(of_module, name, dict((ALL | ASKED_OF_MODULES)[asked]))
        yield f"{name}, compiled", partial(of_compiled, name)


def digest(*parts: Any) -> str:
    made = hashlib.blake2b(digest_size=8)
    for part in parts:
        made.update(part if isinstance(part, bytes) else repr(part).encode())
    return made.hexdigest()


def said(report: Any) -> str:
    """Couplings, sizes, rejects and notes: all that hangs on no clock and no path."""
    data = report.to_dict()
    notes = [n for n in data["notes"] if " ms " not in n]
    return digest(json.dumps([data[k] for k in ("couplings", "rejects", "sites", "tokens", "curves", "kernels")]), notes,
                  data["after"]["macs"], data["after"]["params"], data["before"])  # fmt: skip


def images(sizes: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(sizes).astype(np.float32)


def of_file(path: Path, out: Path, options: dict[str, Any]) -> dict[str, str]:
    out.mkdir(exist_ok=True)
    for old in out.iterdir():
        old.unlink()
    if options.get("data"):
        side = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim[2].dim_value
        options["data"] = images((64, 3, side, side))
    target = out / "out.onnx"
    try:
        result = toastc.prune(path, options.pop("ratios", None), output=None if options.get("dry_run") else target, **options)
    except toastc_errors() as error:
        return {"error": str(error).replace(str(path), "MODEL")}
    files = [(p.name, p.read_bytes()) for p in sorted(out.iterdir())]
    plan, graph = digest(json.dumps(result.plan.to_dict())), graph_of(target) if target.exists() else ""
    return {"bytes": digest(*files), "graph": graph, "plan": plan, "said": said(result.report)}


def graph_of(path: Path) -> str:
    """The nodes with their numbers, whatever tensors and nodes are called."""
    model = onnx.load(path)
    tensors = {t.name: (t.data_type, tuple(t.dims), onnx.numpy_helper.to_array(t).tobytes()) for t in model.graph.initializer}
    names: dict[str, Any] = {v.name: v.name for v in model.graph.input}
    nodes = []
    for node in model.graph.node:
        given = [names.get(n) or tensors.get(n) or n for n in node.input]
        names.update({n: f"{len(nodes)}.{i}" for i, n in enumerate(node.output)})
        nodes.append((node.domain, node.op_type, given, sorted(a.SerializeToString() for a in node.attribute)))
    return digest(nodes, [names.get(v.name) for v in model.graph.output])


def of_module(name: str, options: dict[str, Any]) -> dict[str, str]:
    family = FAMILIES[name]
    with quiet():
        model = family.small()
    torch.manual_seed(1)
    inputs = tuple(family.inputs(False, 2).values())
    if options.get("data"):
        options["data"] = images((64, *inputs[0].shape[1:]))
    try:
        result = toastc.prune(model, options.pop("ratios", None), example_inputs=inputs, **options)
    except toastc_errors() as error:
        return {"error": str(error)}
    with torch.no_grad():
        made = torch.utils._pytree.tree_leaves(result.model(*inputs))
    tensors = [(k, v.numpy().tobytes()) for k, v in sorted(result.model.state_dict().items())]
    outputs = [v.numpy().tobytes() for v in made if isinstance(v, torch.Tensor)]
    return {"tensors": digest(*tensors), "outputs": digest(*outputs), "plan": digest(json.dumps(result.plan.to_dict())),
            "said": said(result.report)}  # fmt: skip


def of_compiled(name: str) -> dict[str, str]:
    family = FAMILIES[name]
    with quiet():
        model = family.small()
    torch.manual_seed(1)
    inputs = tuple(family.inputs(False, 2).values())
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="toastc", options={"ratios": HALF, "recipe": "magnitude", "then": "eager"})
    with torch.no_grad():
        made = torch.utils._pytree.tree_leaves(compiled(*inputs))
    return {"outputs": digest(*[v.numpy().tobytes() for v in made if isinstance(v, torch.Tensor)])}


def toastc_errors() -> type[Exception]:
    """Wherever they live: a witness outlasts the rooms of the house."""
    for where in ("toastc.errors", "toastc.system.errors"):
        try:
            return __import__(where, fromlist=["ToastcError"]).ToastcError  # type: ignore[no-any-return]
        except ImportError:
            continue
    raise ImportError("toastc has no errors")


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    other = 0
    for name in after if len(after) < len(before) else before | after:
        a, b = before.get(name), after.get(name)
        if a != b:
            other += 1
            what = "is missing" if a is None or b is None else ", ".join(k for k in a | b if a.get(k) != b.get(k))
            print(f"{name}: {what}" + (f"\n  {a.get('error')}\n  {b.get('error')}" if a and b and "error" in a | b else ""))
    print(f"{len(after)} of {len(before)} rows, {other} other")
    return 1 if other else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "look", "compare"))
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--only", default="", help="look: rows whose name holds this")
    parser.add_argument("--cpu", type=int, default=0, help="look: the one to run on")
    args = parser.parse_args()
    if args.what == "look" and len(os.sched_getaffinity(0)) > 1:  # from the start: libraries ask when they are loaded
        os.sched_setaffinity(0, {args.cpu})
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if args.what == "make":
        make(args.paths[0])
        return 0
    if args.what == "compare":
        return compare(*(json.loads(p.read_text()) for p in args.paths))
    found = {}
    for name, look in rows(args.paths[0]):
        if args.only in name:
            found[name] = look()
            print(f"{name}: {found[name]}", flush=True)
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
