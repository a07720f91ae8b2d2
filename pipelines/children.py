"""Steps in child processes of this one, for a job without Ray that has a device to feed: several parts at a time, none of them under our lock.

In: functions (never a class: what holds a network stays where it is) and items. Out: what the functions make of them, in the order asked for.
Threads cannot feed a GPU of a thousand images a second: on sixteen processors they loaded 1,000 a second and shared the interpreter's lock with
whoever drives the GPU, which came down to a sixth of its speed. Large arrays (`lifted.py`) go over in memory that has no name and that this process
owns, found by the child through /proc: nothing is left behind, whoever is killed. Linux only; elsewhere `possible` is False.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipelines.format.errors import TemporaryError
from pipelines.lifted import LARGE, lift, lower

Call = Callable[[Any], Any]
Guarded = Callable[[Call, Any], Any]
Sent = tuple[int, int, int]  # process, its file descriptor, bytes


def possible() -> bool:
    """Whether memory can be shared here without a name."""
    return hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")


class Children:
    """`workers` processes that call `calls` one after another. Each is single-threaded: they are as many as there are processors for them."""

    def __init__(self, calls: list[Call], workers: int, guarded: Guarded) -> None:
        self.workers = workers
        self.handed = set[Handed]()  # not yet asked for
        context = multiprocessing.get_context("spawn")  # a fork of a process with CUDA and threads is not one
        self.pool = ProcessPoolExecutor(workers, context, _begin, (os.getpid(), os.getcwd(), calls, guarded))

    def submit(self, item: Any) -> Handed:
        """Begin with an item."""
        rest, beside = lift(item)
        here, there = os.memfd_create("item"), os.memfd_create("result")
        try:
            sent = 0 if rest is item else _written(here, beside)
            job = self.pool.submit(_work, rest, (os.getpid(), here, sent), (os.getpid(), there, 0))
        except BaseException as e:
            os.close(here)
            os.close(there)
            raise (_lost() if isinstance(e, BrokenProcessPool) else e) from None
        job.add_done_callback(lambda _: os.close(here))
        handed = Handed(self, job, there)
        self.handed.add(handed)
        return handed

    def close(self) -> None:
        """Wait for what is being worked on, and drop the rest."""
        self.pool.shutdown(cancel_futures=True)
        for handed in list(self.handed):
            handed.close()


class Handed:
    """A result on its way, to be asked for once. Its memory is given back with the last array that shows it."""

    def __init__(self, children: Children, job: Future[Any], descriptor: int) -> None:
        self.children, self.job, self.descriptor = children, job, descriptor

    def result(self) -> Any:
        try:
            rest, size = self.job.result()
            return lower(rest, _seen(self.descriptor, size)) if size else rest
        except BrokenProcessPool:
            raise _lost() from None
        finally:
            self.close()

    def close(self) -> None:
        self.children.handed.discard(self)
        os.close(self.descriptor)


def _lost() -> TemporaryError:
    return TemporaryError(
        "a child process was lost",
        next="look for the out-of-memory killer in the system's log; with more memory or `engine: ray`, the same command goes on",
    )


_calls: list[Call] = []
_guard: list[Guarded] = []


def _begin(parent: int, folder: str, calls: list[Call], guarded: Guarded) -> None:
    """In a child, once."""
    _calls[:], _guard[:] = calls, [guarded]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    os.chdir(folder)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    """End with the parent, however it ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(rest: Any, item: Sent, result: Sent) -> tuple[Any, int]:
    value = rest
    if item[2]:
        with _theirs(item, os.O_RDONLY) as descriptor:
            value = lower(rest, _seen(descriptor, item[2]))
    for call in _calls:
        value = _guard[0](call, value)
    rest, beside = lift(value)
    if rest is value:
        return value, 0
    with _theirs(result, os.O_RDWR) as descriptor:
        return rest, _written(descriptor, beside)


@contextmanager
def _theirs(sent: Sent, flags: int) -> Iterator[int]:
    """The parent's memory, under a descriptor of our own."""
    descriptor = os.open(f"/proc/{sent[0]}/fd/{sent[1]}", flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _written(descriptor: int, array: np.ndarray) -> int:
    """All of uint8 [n], outside the interpreter's lock; returns n."""
    view = array.data
    while len(view):
        view = view[os.write(descriptor, view[: LARGE << 6]) :]
    return array.nbytes


def _seen(descriptor: int, size: int) -> np.ndarray:
    """The memory as uint8 [size]; what is written to it stays here."""
    return np.frombuffer(mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY), np.uint8)
