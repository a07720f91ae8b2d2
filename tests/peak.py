"""How much memory a call needs, by what Python itself allocates.

Traced in a process of its own: `tracemalloc.stop` beside other threads can crash the interpreter (python/cpython#128679), and the workers of a test
run have threads of pyarrow, torch and fsspec. Nothing in the process that traces is ever stopped: it ends.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def peak_bytes(call: Callable[..., object], *args: object) -> int:
    """Most bytes in use at one time during `call(*args)`, a function of a module; what it raises is raised here."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_traced, call, args).result()


def _traced(call: Callable[..., object], args: tuple[object, ...]) -> int:
    tracemalloc.start()
    call(*args)
    return tracemalloc.get_traced_memory()[1]
