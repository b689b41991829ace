"""Memory that native libraries take without asking: where there is none they end the process, and nobody can say why."""

import mmap
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from threading import Barrier, BrokenBarrierError

import numpy as np

NATIVE = 256  # MB of addresses: the threads of ONNX Runtime and what they allocate from, the buffers of OpenBLAS
AT_ONCE = 4  # threads that multiply (analyse-losses)


@cache
def make_room() -> None:
    """Once, before the first session, where addresses are limited."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return
    try:
        mmap.mmap(-1, NATIVE << 20).close()
    except OSError:
        raise MemoryError(f"ONNX Runtime and NumPy need {NATIVE} MB beside the model (ulimit -v says what is allowed)") from None
    square, begin = np.ones((512, 512)), Barrier(AT_ONCE)

    def multiply(_: int) -> None:
        with suppress(BrokenBarrierError):  # not all of them could be started
            begin.wait(1)
        square @ square  # OpenBLAS takes a buffer for each thread now, and keeps it

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(multiply, range(AT_ONCE)))
