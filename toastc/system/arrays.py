"""Arrays of numpy and of torch, as one."""

from __future__ import annotations

import numpy as np

from .vocabulary import Array


def as_array(value: Array) -> np.ndarray:
    """Of numpy, which knows no bfloat16 of torch: such numbers become float32."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().cpu()
    return np.asarray((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())
