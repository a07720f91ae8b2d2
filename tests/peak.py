"""How much memory a call needs, by what Python itself allocates, and how much a process has held, by what the kernel counted.

Traced in a process of its own: `tracemalloc.stop` beside other threads can crash the interpreter (python/cpython#128679), and the workers of a test
run have threads of pyarrow, torch and fsspec. Nothing in the process that traces is ever stopped: it ends.

The kernel's mark is Linux's VmHWM. getrusage's ru_maxrss is not it: that one outlives `exec`, so a child begins with the peak of the process that
started it, and a worker late in a test run has held more than most children ever will.
"""

from __future__ import annotations

import resource
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path


def peak_bytes(call: Callable[..., object], *args: object) -> int:
    """Most bytes in use at one time during `call(*args)`, a function of a module; what it raises is raised here."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_traced, call, args).result()


def _traced(call: Callable[..., object], args: tuple[object, ...]) -> int:
    tracemalloc.start()
    call(*args)
    return tracemalloc.get_traced_memory()[1]


def most_held(pid: int | str = "self") -> int:
    """Most bytes that a process of this machine has held in memory, its mapped files included; 0 when there is none of that number."""
    if sys.platform != "linux":
        assert pid == "self"
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0


def held_from_now() -> int:
    """Forgets this process's mark where the kernel lets it, and says where the mark stands: what `most_held` says more has been held since."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return most_held()
