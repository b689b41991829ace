"""Modules with a forward of their own, which stay what they were: class, parts, names, hooks; they can be copied and pickled."""

from __future__ import annotations

import linecache
import operator
from hashlib import sha256
from typing import Any

import torch
from torch import nn


def is_nothing(given: torch.Tensor | None) -> bool:
    """Nothing, or a mask that hides nothing: some models make one where they are traced, and then no number can be looked at."""
    if given is None or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return True
    return isinstance(given, torch.Tensor) and bool(given.all() if given.dtype is torch.bool else not given.any())


KNOWN = {
    "torch": torch, "_operator": operator, "operator": operator, "inf": float("inf"), "nan": float("nan"),
    "device": torch.device, "is_nothing": is_nothing,
}  # fmt: skip
KINDS: dict[tuple[type[nn.Module], str], type[nn.Module]] = {}  # made before


class Written:
    """Among the bases of what is made here; a pickle has the text of the forward, not the class."""

    toastc_class: type[nn.Module]  # names that no user's part has: a class comes before the parts of an instance
    toastc_text: str

    def __reduce_ex__(self, protocol: Any) -> Any:
        made: Any = super().__reduce_ex__(2)
        return (again, (type(self).toastc_class, type(self).toastc_text), *made[2:])


def with_forward(module: nn.Module, text: str) -> None:
    """From now on the module's forward is this one."""
    own = type(module)
    vars(module).pop("forward", None)  # of an instance that was patched: what it did is in the new one
    module.__class__ = made(own.toastc_class if issubclass(own, Written) else own, text)


def made(original: type[nn.Module], text: str) -> type[nn.Module]:
    """A class of the same name, one for each text. Its code can be looked at, as any other."""
    if (original, text) not in KINDS:
        file = f"<{original.__name__} made smaller: {sha256(text.encode()).hexdigest()[:8]}>"
        linecache.cache[file] = (len(text), None, text.splitlines(True), file)
        space: dict[str, Any] = dict(KNOWN)
        exec(compile(text, file, "exec"), space)
        own = {"forward": space["forward"], "toastc_class": original, "toastc_text": text}
        looks = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
        KINDS[original, text] = type(original.__name__, (Written, original), own | looks)
    return KINDS[original, text]


def again(original: type[nn.Module], text: str) -> nn.Module:
    """Unpickled."""
    own = made(original, text)
    return own.__new__(own)
