"""Memory that native libraries take without asking: where there is none they end the process, and nobody can say why."""

import ctypes
import gc
import mmap
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import numpy as np

NATIVE = 256  # MB of addresses: the threads of ONNX Runtime and what they allocate from, the buffers of OpenBLAS
LIMITS = (  # of a container: what it may take, what it has taken, and how much of that it gives back when asked
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
     "/sys/fs/cgroup/memory/memory.stat"),
)  # fmt: skip
ARENAS = -8  # M_ARENA_MAX of malloc.h
AT_ONCE = 4  # threads that multiply (analyse-losses)


def free_memory() -> int | None:
    """Bytes that may still be taken, by the machine, its container and this process; None where nothing is known of that."""
    known = []
    with suppress(OSError, ValueError, StopIteration):
        known.append(1024 * number(Path("/proc/meminfo"), "MemAvailable:"))
    for limit, taken, stat in LIMITS:
        with suppress(OSError, ValueError, StopIteration):  # "max" is no number
            back = number(Path(stat), "inactive_file")
            known.append(int(Path(limit).read_text()) - int(Path(taken).read_text()) + back)
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError):
            known.append(allowed - mmap.PAGESIZE * int(Path("/proc/self/statm").read_text().split()[0]))
    return min(known, default=None)


def one_heap() -> None:
    """For all threads: each would keep what it freed in a heap of its own."""
    with suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).mallopt(ARENAS, 1)


def give_back(cycles: bool = False) -> None:
    """What nothing uses any more goes back to the system, which the allocator would keep. `cycles`: models are such."""
    if cycles:
        gc.collect()
    with suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def number(file: Path, name: str) -> int:
    """What a line of a file says that starts with this word."""
    return int(next(line.split()[1] for line in file.read_text().splitlines() if line.startswith(name)))


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
