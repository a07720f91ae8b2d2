"""What a dataset's recipe did with a record: the steps that it passes, or where it fell out and why. Behind `pipelines trace`.

In: the card of a dataset, an id. Out: plain values. Dropped records have a row each in the files of rejects that the commit records name; of those
only the columns of ids are read until one meets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pipelines.format import storage
from pipelines.format.chance import record_id
from pipelines.format.storage import join

_DERIVED = re.compile(r"~\d+$")


def steps(recipe: dict[str, Any]) -> list[str]:
    """What records pass in this recipe, in order: filters, transforms, whole-dataset stages; or what encodes their texts and images."""
    found = [f"{kind} {_name(part)}" for kind in ("filter", "transform") for part in recipe.get(f"{kind}s") or []]
    found += [f"across {_name(part)}" for part in recipe.get("across") or []]
    return found + [f"{key} by {_name(recipe[key])}" for key in ("text", "images") if isinstance(recipe.get(key), dict | str)]


def _name(part: Any) -> str:
    return str(next(iter(part), "?")) if isinstance(part, dict) else str(part)


def dropped(path: str, id: str) -> dict[str, Any] | None:
    """The row of rejects of this record in the dataset at `path`: {id, origin, stage, outcome, reason, error}, and its part."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    for part, name in _rejects(path):
        file = pq.ParquetFile(pa.BufferReader(storage.read(join(path, name))))
        row = pc.index(file.read(columns=["id"])["id"], pa.scalar(id, pa.string())).as_py()
        if row >= 0:
            return {"part": part, **file.read().slice(row, 1).to_pylist()[0]}
    return None


def _rejects(path: str) -> Iterator[tuple[int, str]]:
    folder = join(path, "parts")
    for name in sorted(n for n, _, _ in storage.listing(folder, (".json",))) if storage.exists(folder) else []:
        commit = storage.read_json(join(folder, name))
        yield from ((commit["part"], f["path"]) for f in commit["files"] if f["path"].startswith("rejects/"))


def before(source: str, origin: str) -> str | None:
    """The id of the record that this one was derived from (`~k` at the end of its origin), or None."""
    return record_id(source, _DERIVED.sub("", origin)) if _DERIVED.search(origin) else None
