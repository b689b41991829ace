"""Attentions and FFNs drawn at random, as modules and as files: each is cut and proven, or a reason is given."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import Row, progress

if TYPE_CHECKING:
    from torch import nn

ATTENTION = [{"qk": 0.5, "vo": 0.25}, {"qk": 0.5, "vo": 0.25, "heads": 0.5}]
# Cut unevenly, channels are no tensor any more, or would change places: the one thing that is refused with the whole model.
UNEVEN = r"is no grid; what stands in it is cut unevenly|what is cut unevenly would change places"
BENT = ("relu", "gelu", "where", "with itself", "halves multiplied", "pairs multiplied", "beside its tanh", "between its tanh",
        "tokens first", "rows")  # an FFN has one of these  # fmt: skip
NOTHING = "no attention and no FFN was found that can be shrunk"  # by itself no reason


def outcome(model: nn.Module, ratios: dict[str, Any], folder: Path, file: bool) -> tuple[list[str], list[str]]:
    """Which couplings were cut and proven, and the reasons for what was not."""
    import torch
    from plumbing import X
    from zoo_exports import quiet

    import toastc
    from toastc.system.errors import CannotShrink, NothingToPrune

    try:
        with quiet():
            if file:
                source, free = folder / "m.onnx", {"x": {0: "b"}}
                options: dict[str, Any] = {"opset_version": 17, "input_names": ["x"], "dynamic_axes": free, "dynamo": False}
                torch.onnx.export(model.eval(), (X,), source, **options)
                where = {"runtime": "ort-cpu", "output": folder / "o.onnx"}
                made = toastc.prune(source, ratios | {"round_to": 1}, recipe="magnitude", **where)
            else:
                made = toastc.prune(model.eval(), ratios | {"round_to": 1}, recipe="magnitude", example_inputs=(X,))
    except NothingToPrune as error:
        return [], [str(error)]
    except CannotShrink as error:
        if re.search(UNEVEN, str(error)):
            return [], ["uneven"]
        raise
    report = made.report
    left = [note for note in report.notes if note.startswith("not fused")]
    if left or (made.plan and not (report.verified and report.verified["ok"])):
        raise ValueError(f"not proven, or {left}")
    return [name.rpartition(".")[2] for name in made.plan.choices], [reject.reason for reject in report.rejects]


def silent(model: nn.Module, cut: list[str], reasons: list[str]) -> bool:
    """Was something that should be known left whole without a word?"""
    from plumbing import Ffn

    if isinstance(model, Ffn) and not any(name in BENT for name, _, _ in model.steps):
        return False  # none, really
    return not cut and not [reason for reason in reasons if reason != NOTHING]


def run(count: int, seed: int = 0, say: bool = True) -> Row:
    """So many attentions and so many FFNs, each as a module and as a file."""
    from plumbing import Attention, Ffn

    found, wrong, begun = {"proven": 0, "with a reason": 0, "uneven": 0}, list[str](), time.perf_counter()
    for n in range(seed * count, (seed + 1) * count):
        for kind, file in ((k, f) for k in (Attention, Ffn) for f in (False, True)):
            model = kind(n)
            ratios = {"attention": ATTENTION[n % 2]} if kind is Attention else {"ffn": 0.5}
            try:
                with tempfile.TemporaryDirectory() as folder:
                    cut, reasons = outcome(model, ratios, Path(folder), file)
                found["proven" if cut else "uneven" if reasons == ["uneven"] else "with a reason"] += 1
                if silent(model, cut, reasons):
                    wrong.append(f"{kind.__name__}({n}), {'file' if file else 'module'}: nothing was said")
            except Exception as error:  # noqa: BLE001  whatever it is, it is told
                wrong.append(f"{kind.__name__}({n}), {'file' if file else 'module'}: {type(error).__name__} {error}"[:300])
        if say:
            progress("plumbing", n - seed * count + 1, count, len(wrong))
    for why in wrong:
        print(f"  {why}", flush=True)
    return {"attentions and FFNs": 2 * count, "modules and files": 4 * count, **found,
            "seconds": round(time.perf_counter() - begun), "bad": len(wrong)}  # fmt: skip
