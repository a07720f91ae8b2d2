"""What sources of raw video noted about a clip, as the filters of clips ask for it.

What comes in: a record and the name of a measure (`media/measures.py`). What goes out: its number, or its list with one number a frame. A clip
of one frame has no motion: that is None, and no filter drops it for that. A record that was never measured is the recipe's mistake, not the
record's: `InputError` stops the job.
"""

from __future__ import annotations

from typing import Any

from pipelines.format.errors import InputError
from pipelines.format.record import Record


def score(record: Record, name: str) -> float | None:
    """A clip's summary."""
    _measured(record, name)
    return record.scores.get(name)


def frames(record: Record, name: str) -> list[float]:
    """The numbers of a clip's frames, those that have one: the first has no motion."""
    _measured(record, name)
    return [x for x in record.fields["frames"][name] if x is not None]


def field(record: Record, name: str) -> Any:
    """A fact about the clip: `shown` [width, height], `bars` [top, bottom, left, right]."""
    _measured(record, name)
    return record.fields[name]


def _measured(record: Record, name: str) -> None:
    if "shown" not in record.fields or "frames" not in record.fields:
        raise InputError(
            "a filter of clips met a record that was not measured",
            where=record.origin,
            found=f"a {record.data} record without `{name}`",
            allowed="records of raw video whose source says `measure: true`, as is the default",
            next="measure: true in the source, or leave the filter out",
        )
