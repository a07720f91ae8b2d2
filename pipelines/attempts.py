"""How often a step began with an item, so that one that takes its worker down each time ends the job instead of going round for ever.

Ray gives what a lost worker had in hand to another one, as often as it takes, the innocent that waited behind the culprit too. So what is counted is
what was really begun, and the number of times allowed is more than bad luck takes.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipelines.format.errors import TemporaryError

ALLOWED = 5


class Attempts:
    """One per job, in a place of its own; should it be lost itself, it counts anew."""

    def __init__(self) -> None:
        self._begun: Counter[Any] = Counter()

    def begin(self, key: Any) -> int:
        """How often this was begun, with this time."""
        self._begun[key] += 1
        return self._begun[key]


def too_often(step: str, number: int) -> TemporaryError:
    return TemporaryError(
        f"a worker was lost {ALLOWED} times with the same part",
        where=f"{step}, part {number} of those that were left to do",
        next="look for the out-of-memory killer in the system's log or Ray's; with fewer workers or more memory, the same command goes on",
    )
