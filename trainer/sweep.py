"""Many small runs, several at a time: long-lived worker processes that each train and evaluate one arm-run after another.

Starting a process that trains costs seconds (torch's imports), a run of the demo half a minute: so workers are few and live long. One process with
one thread each is also the fastest use of a small machine (two processes × 1 thread train 29 % more tokens a second than one × 2 threads at
0.5M parameters). Longest first, so that no core waits for the last. Whatever is finished is skipped, whatever was stopped goes on from its
checkpoint, so the same call may be made again after any kill. Workers watch their parent and leave when it has gone.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from pipelines.format.document import dump
from pipelines.format.errors import Stopped
from trainer.run import Run

Log = Callable[..., Any]
_stop: Any = None  # this worker's view of the parent's wish; set once, when the worker starts


@dataclass(frozen=True, slots=True)
class Task:
    """One arm-run: the run document, the evaluations as plain values, and how long it is next to the others (any unit)."""

    name: str
    run: dict[str, Any]
    evaluate: list[Any]
    size: float


def task(name: str, run: Run, evaluate: list[Any], size: float) -> Task:
    """From documents to what travels between processes."""
    return Task(name, dump(run), evaluate, size)


def do(item: Task, stop: Any = None) -> dict[str, Any]:
    """Train and evaluate one run in this process. Returns its name and seconds."""
    from trainer.evaluate import Evaluations, evaluate_run
    from trainer.loop import train
    from trainer.parallel import device_of

    begun = time.monotonic()
    run = Run.model_validate(item.run)
    train(run, stop=stop)
    if stop is not None and stop.is_set():
        raise Stopped("stopped before the evaluation", where=run.output, next="the same command goes on")
    parts = Evaluations.model_validate({"evaluate": item.evaluate}).evaluate
    evaluate_run(run.output, parts, device_of(run.device))
    return {"name": item.name, "seconds": round(time.monotonic() - begun, 1)}


def sweep(tasks: list[Task], parallel: int, stop: threading.Event, log: Log) -> None:
    """Do all tasks, `parallel` at a time. Raises the first error, after the others have been asked to stop; Stopped when `stop` is set."""
    ordered = sorted(tasks, key=lambda t: -t.size)
    if parallel == 1 or len(ordered) == 1:
        for i, item in enumerate(ordered):
            _refuse_when_stopped(stop)
            log("arm", **do(item, stop), done=i + 1, of=len(ordered))
        return
    context = get_context("spawn")  # torch's threads do not survive a fork
    wish = context.Event()
    with ProcessPoolExecutor(parallel, context, _enter, (wish, os.getpid())) as pool:
        waiting: set[Future[dict[str, Any]]] = {pool.submit(_do, item) for item in ordered}
        try:
            done = 0
            while waiting:
                finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    done += 1
                    log("arm", **future.result(), done=done, of=len(ordered))
                _refuse_when_stopped(stop)
        finally:
            wish.set()
            for future in waiting:
                future.cancel()


def _refuse_when_stopped(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped("the ablation was stopped; finished runs and checkpoints are kept", next="the same command goes on")


def _do(item: Task) -> dict[str, Any]:
    return do(item, _stop)


def _enter(wish: Any, parent: int) -> None:
    """A worker begins: one thread, deaf to Ctrl-C (the parent tells it), gone when the parent is."""
    import signal

    import torch

    global _stop
    _stop = wish
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # everything published is whole, and nobody is left to hear of the rest
