"""Reports that were saved: as JSON, as a page, or as the plan a model or a file carries."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..graphs.onnx import (
    OnnxGraph,
    carries_plan,
    external_files,
    file_bytes,
    is_quantised,
    load_model,
    macs_of,
    plan_of,
    read_model,
)  # fmt: skip
from ..graphs.protocols import Reader
from ..passes.match import match
from ..passes.match.whole import share_of_macs, stays_whole
from ..plans.plan import Plan
from ..system.errors import ToastcError
from ..system.vocabulary import Json
from .data import reject_dicts, site_dict

DATA = re.compile(r'<script type="application/json" id="report">(.*?)</script>', re.DOTALL)
EIGHT_BITS = "the weights are 8-bit numbers: what was cut is listed, and what was left whole is not"

BROKEN = (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError)


@contextlib.contextmanager
def as_written(*sources: Path | None) -> Iterator[None]:
    """What somebody else wrote may lack anything, or say it otherwise; it is found out when it is shown."""
    try:
        yield
    except BROKEN as error:
        names = ", ".join(str(source) for source in sources if source is not None)
        raise ToastcError(f"{names}: not what toastc writes, or damaged ({type(error).__name__}: {str(error)[:120]})") from None


def read_from(path: Path) -> list[Path]:
    """The file, and those a model's weights are in."""

    return [path, *external_files(read_model(path))] if path.suffix == ".onnx" else [path]


def read_report(path: Path) -> Json:
    """What `--json` printed, a page that `--report` wrote, a plan, or a model."""
    if path.suffix == ".safetensors":
        return {"model": str(path), "couplings": [*rows_of_plan(Plan.load(path))]}
    if path.suffix == ".onnx":
        return of_model(path)
    text = read_text(path)
    if path.suffix in (".html", ".htm"):
        found = DATA.search(text)
        if found is None:
            raise ToastcError(f"{path}: is no page of toastc's")
        text = found[1]
    data = parsed(path, text)
    rows = data.get("couplings")
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ToastcError(f"{path}: is no report; give what `toastc ... --json` printed, a page, a plan or a model")
    return data


def read_json(path: Path, keys: set[str], what: str) -> Json:
    """Figures that another command wrote."""
    data = parsed(path, read_text(path))
    if not keys <= set(data):
        raise ToastcError(f"{path}: is not what {what} writes: {', '.join(sorted(keys - set(data)))} is missing")
    return data


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ToastcError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ToastcError(f"{path}: can not be read ({error})") from None


def parsed(path: Path, text: str) -> Json:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ToastcError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, Mapping):
        raise ToastcError(f"{path}: is a {type(data).__name__} where an object belongs")
    return dict(data)


def rows_of_plan(plan: Plan) -> list[Json]:
    rows = []
    for name, choice in plan.choices.items():
        site, _, coupling = name.rpartition(".")
        which = choice.index[0].tolist() if coupling == "heads" else []
        rows.append({"site": site, "coupling": coupling, "groups": len(choice.index), "original": choice.of or choice.width,
                     "kept": choice.width, "reason": "", "which": which})  # fmt: skip
    return rows


def inspected(graph: Reader, name: str) -> Json:
    """What can be shrunk and what not, as `toastc inspect --json` has it."""
    ledger, sites, rejects = match(graph)
    macs, params = graph.totals()
    rows, refused = [site_dict(s) for s in sites], reject_dicts(sites, rejects)
    whole = [{"node": r.node, "reason": r.reason, "share": round(share, 4)} for r, share in stays_whole(ledger, sites)]
    share = round(share_of_macs(graph, sites), 4)
    return {"model": name, "sites": rows, "rejects": refused, "whole": whole, "macs": macs, "params": params, "share": share}


def of_model(path: Path) -> Json:
    """A model as it is, with what was cut before if it carries a plan. Of 8-bit weights the plan is all that can be read."""

    model = read_model(path)
    plan = plan_of(model, str(path)) if carries_plan(model) else Plan()
    if is_quantised(model):
        size = {"macs": macs_of(path), "params": None, "bytes": file_bytes(model, path)}
        return {"model": str(path), "after": size, "couplings": rows_of_plan(plan), "notes": [EIGHT_BITS]}
    data = inspected(OnnxGraph(load_model(path)), str(path))
    cut = {(row["site"], row["coupling"]): row for row in rows_of_plan(plan)}
    rows = []
    for site in data["sites"]:
        for own in site["couplings"]:
            row = {"site": site["name"], "coupling": own["name"], "groups": own["groups"], "original": own["width"],
                   "kept": own["width"], "reason": "" if own["prunable"] else own["reason"]}  # fmt: skip
            rows.append(row | cut.pop((site["name"], own["name"]), {}))
    size = {"macs": data["macs"], "params": data["params"], "bytes": file_bytes(model, path)}
    sites = [{"site": s["name"], "kind": s["kind"], **{k: [None, s[k]] for k in ("macs", "params")}} for s in data["sites"]]
    return {"model": str(path), "after": size, "couplings": rows + list(cut.values()), "sites": sites, "rejects": data["rejects"]}
