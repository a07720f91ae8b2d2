"""A progress bar that tells the truth: parts done, records per second, time left, and the drops by reason. On stderr, and only for people.

When stderr is no terminal a plain line is printed now and then instead, so that logs of batch jobs stay readable.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

PLAIN_EVERY = 30.0  # seconds between plain lines


class Progress:
    """Parts done of parts to do, with what became of their records. `done` parts were there already and do not count for the rate."""

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.done = title, total, done
        self._before, self._began, self._said = done, time.monotonic(), time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = [TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("parts"), TimeRemainingColumn()]
            self._bar = Bar(*columns, TextColumn("{task.fields[note]}", markup=False), console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, note="")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, part: Mapping[str, Any], outcome: Mapping[str, int]) -> None:
        """One more part is committed; `outcome` has "in", "written" and every reason so far."""
        self.done += 1
        now = time.monotonic()
        note = self._note(outcome, now - self._began)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=note)
        elif now - self._said > PLAIN_EVERY:
            self._said = now
            left = (now - self._began) / max(self.done - self._before, 1) * (self.total - self.done)
            print(f"{self.title}: {self.done}/{self.total} parts, {note}, about {left:.0f} s left", file=sys.stderr, flush=True)

    def _note(self, outcome: Mapping[str, int], seconds: float) -> str:
        drops = ", ".join(f"{k} {v:,}" for k, v in sorted(outcome.items()) if k not in ("in", "written"))
        return f"{outcome['written']:,} records, {outcome['in'] / max(seconds, 1e-9):,.0f}/s{'; dropped: ' + drops if drops else ''}"
