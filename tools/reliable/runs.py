"""The command in processes of its own, as a user starts it: to be killed, starved or raced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import QUICK, RATIOS, ROOT, SLOW


@dataclass(frozen=True)
class End:
    """How a process ended."""

    status: int | None  # None: it never did
    said: str
    seconds: float


def started(args: list[str], before: Callable[[], None] | None = None, **environment: str) -> subprocess.Popen[str]:
    """`before` is called in the new process, before the command begins."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started us may have silenced it
        if before is not None:
            before()

    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "toastc", *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=prepare,
        env=os.environ | {"PYTHONPATH": paths} | environment,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], since: float) -> End:
    try:
        said = process.communicate(timeout=SLOW)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return End(None, process.communicate()[1], time.perf_counter() - since)
    return End(process.returncode, said, time.perf_counter() - since)


def ran(args: list[str], before: Callable[[], None] | None = None, **environment: str) -> End:
    since = time.perf_counter()
    return ended(started(args, before, **environment), since)


def wide_model(folder: Path) -> list[str]:
    """Arguments of a compile whose every stage takes a moment: the tiny ViT, and very wide weights at its end."""
    import models
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    model: Any = models.vit()
    bulk = np.random.default_rng(0).standard_normal((models.CLASSES, 100_000)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(bulk, "bulk"))
    model.graph.node.append(helper.make_node("MatMul", ["logits", "bulk"], ["more"]))
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch", 100_000]))
    (folder / "r.json").write_text(json.dumps(RATIOS))
    return [str(models.save(model, folder / "model.onnx")), "--ratios", str(folder / "r.json"), *QUICK]


def runs(path: Path) -> bool:
    """Is it a whole model? ONNX Runtime has the say."""
    import models

    return len(models.run(path, batch=1)) > 0
