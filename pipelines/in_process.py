"""A chain of steps in this process: no Ray, the same results, and the step that holds a network never waits for the others if it need not.

    items ──▶ steps before the first class, ahead ──▶ classes, here ──▶ steps after the last class, behind

What is before and after goes on beside the classes: in a thread each, one item ahead and one behind, or, where a step asks for `processes`, in as
many child processes, with as many items ahead or behind (`children.py`): a GPU wants several processors beside it. The classes are called in this
thread, or, where one of them takes several items `at_once`, in as many threads. Results keep the order of the items. A chain without a class has
nothing to keep busy and runs one item at a time, here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from pipelines import children
from pipelines.stage import Step

Call = Callable[[Any], Any]
Guarded = Callable[[Call, Any], Any]


def run(chain: list[Step], items: list[Any], guarded: Guarded) -> Iterator[Any]:
    """Results in the order of the items. `guarded` calls a step with an item, and says what an error of a step becomes."""
    held = [i for i, step in enumerate(chain) if isinstance(step.fn, type)]
    if not held or len(chain) == len(held):
        calls = [step.ready() for step in chain]
        yield from (_through(calls, item, guarded) for item in items)
        return
    here = [step.ready() for step in chain[held[0] : held[-1] + 1]]
    at_once = max(step.at_once for step in chain)
    before, after = (_beside(steps, guarded) for steps in (chain[: held[0]], chain[held[-1] + 1 :]))
    loading: deque[Any] = deque()
    ending: deque[Future[Any]] = deque()
    worker, writer = ThreadPoolExecutor(at_once), ThreadPoolExecutor(after.workers)
    waiting = iter(items)
    try:
        loading += (before.submit(item) for item in islice(waiting, before.workers))
        while loading:
            loaded = loading.popleft().result()
            loading += (before.submit(item) for item in islice(waiting, 1))
            made = worker.submit(_through, here, loaded, guarded) if at_once > 1 else _through(here, loaded, guarded)
            ending.append(writer.submit(_end, after, made))
            del loaded, made
            if len(ending) > at_once + after.workers - 1:
                yield ending.popleft().result()
        while ending:
            yield ending.popleft().result()
    finally:
        for pool in (worker, writer):
            pool.shutdown(cancel_futures=True)
        before.close()
        after.close()


class Thread:
    """Steps in one thread of this process."""

    workers = 1

    def __init__(self, calls: list[Call], guarded: Guarded) -> None:
        self.calls, self.guarded, self.pool = calls, guarded, ThreadPoolExecutor(1)

    def submit(self, item: Any) -> Future[Any]:
        return self.pool.submit(_through, self.calls, item, self.guarded)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


def _beside(steps: list[Step], guarded: Guarded) -> Thread | children.Children:
    """Where steps beside the classes run."""
    processes = max((step.processes for step in steps), default=0)
    calls = [step.ready() for step in steps]
    return children.Children(calls, processes, guarded) if processes and children.possible() else Thread(calls, guarded)


def _end(after: Thread | children.Children, made: Any) -> Any:
    return after.submit(made.result() if isinstance(made, Future) else made).result()


def _through(calls: list[Call], item: Any, guarded: Guarded) -> Any:
    for call in calls:
        item = guarded(call, item)
    return item
