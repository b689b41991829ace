"""Memory that native libraries take without asking: where there is none they end the process, and nobody can say why."""

import mmap
from functools import cache

import numpy as np

NATIVE = 192  # MB of addresses: the threads of ONNX Runtime and what they allocate from, the buffers of OpenBLAS


@cache
def make_room() -> None:
    """Once, before the first session."""
    try:
        mmap.mmap(-1, NATIVE << 20).close()
    except OSError:
        raise MemoryError(f"ONNX Runtime and NumPy need {NATIVE} MB beside the model (ulimit -v says what is allowed)") from None
    square = np.ones((256, 256))
    square @ square  # OpenBLAS takes its buffer now, and keeps it
