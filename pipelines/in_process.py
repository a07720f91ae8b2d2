"""A chain of steps in this process: no Ray, the same results, and the step that holds a network never waits for the others if it need not.

    items ──▶ steps before the first class, one item ahead, in a thread ──▶ classes, here ──▶ steps after the last class, one item behind, in a thread

What loads and writes (files, decoders, hashes) lets go of the interpreter's lock, so a GPU computes while the next part is decoded and the one
before is written. Each thread has one item at a time and the results keep the order of the items; at most four items are in memory. A chain
without a class has nothing to keep busy and runs one item at a time, here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from pipelines.stage import Step

Call = Callable[[Any], Any]


def run(chain: list[Step], items: list[Any], guarded: Callable[[Call, Any], Any]) -> Iterator[Any]:
    """Results in the order of the items. `guarded` calls a step with an item, and says what an error of a step becomes."""
    calls = [step.ready() for step in chain]
    held = [i for i, step in enumerate(chain) if isinstance(step.fn, type)]
    if not held or len(chain) == len(held):
        yield from (_through(calls, item, guarded) for item in items)
        return
    before, here, after = calls[: held[0]], calls[held[0] : held[-1] + 1], calls[held[-1] + 1 :]
    loading: deque[Future[Any]] = deque()
    writing: deque[Future[Any]] = deque()
    loader, writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    waiting = iter(items)
    try:
        loading += (loader.submit(_through, before, item, guarded) for item in islice(waiting, 1))
        while loading:
            loaded = loading.popleft().result()
            loading += (loader.submit(_through, before, item, guarded) for item in islice(waiting, 1))
            writing.append(writer.submit(_through, after, _through(here, loaded, guarded), guarded))
            del loaded
            if len(writing) > 1:
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()
    finally:
        for pool in (loader, writer):
            pool.shutdown(cancel_futures=True)


def _through(calls: list[Call], item: Any, guarded: Callable[[Call, Any], Any]) -> Any:
    for call in calls:
        item = guarded(call, item)
    return item
