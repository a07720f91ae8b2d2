"""A clean stop: the first SIGINT or SIGTERM asks the job to finish what it holds, the second ends at once, and both say how to go on.

In: the command that was given. Out: status 130 or 143 within `GRACE` seconds, with the command that resumes. Parts are published
atomically, so leaving in the middle loses at most the parts in hand; that is why the deadline may end the process without asking it.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipelines.format.errors import Stopped

GRACE = 28.0  # seconds; schedulers give 30 to 120 between SIGTERM and SIGKILL


class Stopping:
    """What the signals found: `signum` is 0 until one came. `watch` names the event that a running job looks at."""

    def __init__(self, command: list[str]) -> None:
        self.resume = shlex.join(command)
        self.signum = 0
        self.event: threading.Event | None = None
        self.deadline = threading.Timer(GRACE, self._give_up)
        self.deadline.daemon = True

    def watch(self, event: threading.Event) -> None:
        """From here on a signal sets `event` instead of raising where the program happens to be."""
        self.event = event
        if self.signum:
            event.set()

    def check(self) -> None:
        """Raise if a signal came: for work that ended early because the job was asked to stop."""
        if self.signum:
            raise self.error()

    def error(self) -> Stopped:
        return Stopped("stopped on request; what was finished is kept", signal=self.signum, next=self.resume)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        again, self.signum = self.signum != 0, signum
        if again or self.event is None:
            raise self.error()
        print(f"stopping: finishing what is in hand (at most {GRACE:.0f} s; once more ends at once)", file=sys.stderr, flush=True)
        self.event.set()
        self.deadline.start()

    def _give_up(self) -> None:
        print(f"{self.error()}", file=sys.stderr, flush=True)
        os._exit(128 + self.signum)


@contextmanager
def stopping(command: list[str]) -> Iterator[Stopping]:
    """Within this block SIGINT and SIGTERM stop cleanly; on the way out they end as `Stopped`, whatever error the stop itself caused."""
    state = Stopping(command)
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {s: signal.signal(s, state) for s in signals} if threading.current_thread() is threading.main_thread() else {}
    try:
        yield state
    except (Exception, KeyboardInterrupt) as error:
        if state.signum:
            raise state.error() from error
        raise
    finally:
        state.deadline.cancel()
        for s, handler in before.items():
            signal.signal(s, handler)


@contextmanager
def kept_signals() -> Iterator[None]:
    """Keep our handlers: ray.init puts its own SIGTERM handler in their place, and then a job cannot stop cleanly."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
