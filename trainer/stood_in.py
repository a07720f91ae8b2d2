"""A run's note of which records stood in for forgotten ones: `stand-ins-<hash>.parquet` beside its metrics, one row a place.

In: the stand-ins that the run's reader found. Out: a file named by content (a run that goes on after a second `forget` has two) and one event for
log.jsonl. Columns: seq (the row of the plan; step = seq div batch), source, forgotten, id (null where nothing fitted), epoch, tokens.
"""

from __future__ import annotations

from typing import Any

from mixtures.stand_ins import StandIns
from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.shard import parquet_bytes


def note(root: str, made: StandIns) -> dict[str, Any] | None:
    """Write the file and return the event; None, and nothing written, when no record of the plan was forgotten since it was made."""
    if not made.replaced:
        return None
    data = parquet_bytes(made.table())
    name = f"stand-ins-{sha256_hex(data)[:16]}.parquet"
    storage.publish(storage.join(root, name), data, scratch=root)
    forgotten = len({r.forgotten for r in made.replaced})
    return {"event": "stand-ins", "file": name, "forgotten": forgotten, "stood_in": len({r.id for r in made.replaced} - {None}), "empty": made.empty}


def noted(root: str) -> bool:
    """Whether a run read other records than its plan names: then it consumed about as many tokens, not exactly as many."""
    return any(name.startswith("stand-ins-") for name, _, _ in storage.listing(root, (".parquet",)))
