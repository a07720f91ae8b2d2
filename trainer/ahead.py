"""Making things before they are asked for, in a thread: what a step's input needs beyond reading (noise, counts) then costs the loop nothing."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any

LEAVING_SECONDS = 10.0  # how long a thread may take to notice that nobody reads any more


def ahead(items: Iterator[Any], depth: int) -> Generator[Any, None, None]:
    """The same items, made up to `depth` early in a thread (0: in this one, which a single core prefers). Leaving closes `items`."""
    if depth == 0:
        yield from items
        return
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=depth)
    left = threading.Event()

    def hand_over(more: bool, item: Any) -> None:
        while not left.is_set():
            with suppress(queue.Full):
                ready.put((more, item), timeout=0.2)
                return

    def work() -> None:
        try:
            for item in items:
                hand_over(True, item)
                if left.is_set():
                    break
            hand_over(False, None)
        except BaseException as error:  # handed to the reader, which raises it
            hand_over(False, error)
        finally:
            if hasattr(items, "close"):
                items.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if more:
                yield item
            elif item is not None:
                raise item
            else:
                return
    finally:
        left.set()
        thread.join(LEAVING_SECONDS)
