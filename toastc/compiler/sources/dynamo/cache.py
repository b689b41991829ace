"""Plans that were found, kept on disk: the same graph, weights and options find theirs again in another process.

`TOASTC_CACHE` is the folder, `off` for none; without it one beside inductor's. An entry is written beside its place and moved
there, so that two processes may share a folder; one that can not be read is left alone and written anew. The least recently used
go where the folder grows over `MOST`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from ....graphs.fx.classify import meta, op_name
from ....plans.plan import Plan
from ....system.arrays import as_array
from ....system.errors import ToastcError
from ...options import Options

log = logging.getLogger("toastc")
MOST = 4 << 30  # bytes
FOLDER = "TOASTC_CACHE"
OFF = ("off", "0")
LEFT_OUT = ("tell", "then", "mode", "verify", "command", "plan_out")  # options that change nothing of a plan


def folder() -> Path | None:
    given = os.environ.get(FOLDER)
    if given:
        return None if given in OFF else Path(given)
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    theirs = Path(cache_dir())
    return theirs.with_name(theirs.name.replace("torchinductor", "toastc") if "torchinductor" in theirs.name else "toastc")


class Unstable(Exception):
    """Of which can not be told whether it will be the same another time."""


def key_of(gm: fx.GraphModule, options: Options) -> str | None:
    """Of a graph, for all batch sizes and whatever of it is symbolic: its weights, what is done, and what is asked. None where
    that can not be told.
    """
    digest = hashlib.blake2b(f"toastc {version('toastc')}".encode(), digest_size=20)
    seen: dict[int, int] = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            tensor = gm
            for part in str(node.target).split("."):
                tensor = getattr(tensor, part)
            if isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
                seen[id(tensor)] = len(seen)
                update(digest, tensor)
            digest.update(f"{node.target} {seen.get(id(tensor))}".encode())
        elif node.op.startswith("call") and isinstance(meta(node), torch.Tensor) and meta(node).dim():
            floats = [value for value in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(value, float)]
            digest.update(f"{op_name(node)} {meta(node).dtype} {meta(node).dim()} {floats}".encode())
    try:
        for each in fields(options):
            if each.name not in LEFT_OUT:
                update(digest, each.name)
                update(digest, getattr(options, each.name))
    except Unstable:
        return None
    return digest.hexdigest()


def update(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.ascontiguousarray(as_array(value.detach() if isinstance(value, torch.Tensor) else value))
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    elif isinstance(value, Path) or (isinstance(value, str) and os.path.exists(value)):
        for path in (found := sorted(Path(value).rglob("*")) if Path(value).is_dir() else [Path(value)]):
            state = path.stat()
            digest.update(f"{path} {state.st_size} {state.st_mtime_ns}".encode())
        digest.update(str(len(found)).encode())
    elif value is None or isinstance(value, str | int | float | bool):
        digest.update(repr(value).encode())
    elif isinstance(value, Mapping):
        update(digest, [part for key in sorted(value, key=str) for part in (str(key), value[key])])
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for each in value:
            update(digest, each)
    elif is_dataclass(value):
        update(
            digest, [type(value).__name__, *(part for each in fields(value) for part in (each.name, getattr(value, each.name)))]
        )
    else:
        raise Unstable(type(value).__name__)


def load(key: str | None) -> Plan | None:
    where = folder()
    if where is None or key is None or not (path := where / f"{key}.safetensors").exists():
        return None
    try:
        plan = Plan.load(path)
        os.utime(path)
    except (ToastcError, OSError) as error:
        log.debug("toastc: %s is not used: %s", path, error)
        return None
    return plan


def save(key: str | None, plan: Plan) -> None:
    where = folder()
    if where is None or key is None:
        return
    try:
        where.mkdir(parents=True, exist_ok=True)
        plan.save(where / f"{key}.safetensors")
        shrink(where.glob("*.safetensors"), MOST)
    except OSError as error:
        log.warning("toastc: the plan is not kept: %s (%s names another folder, or is off)", error, FOLDER)


def shrink(files: Iterable[Path], most: int) -> None:
    """The least recently used go; another process may be at it too."""
    found = []
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            state = path.stat()
            found.append((state.st_mtime_ns, state.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            break
        path.unlink(missing_ok=True)
        total -= size
