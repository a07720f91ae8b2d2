"""Texts of evaluation sets and held-out data, wherever they lie: `.txt`, `.jsonl` (gz, zst), `.parquet`, or a curated dataset."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.bounded import COMPRESSIONS, lines, opened
from pipelines.format import storage
from pipelines.format.chance import held_out
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError, Reject
from pipelines.format.forgotten import living
from pipelines.json_list import parse
from pipelines.listing import list_files, place
from pipelines.row_groups import group_runs, numbered_rows
from pipelines.sources.jsonl import field

SUFFIXES = (*(kind + end for kind in (".txt", ".jsonl", ".ndjson", ".json") for end in ("", *COMPRESSIONS)), ".parquet")


def reference_texts(path: str, fields: tuple[str, ...], side: tuple[float, int] | None = None) -> Iterator[str]:
    """Every text of a set; with `side` = (fraction, seed), of a dataset only the records whose group is held out. Raises `InputError` for
    what cannot be read: a set with holes would let through what it was meant to catch."""
    if storage.exists(storage.join(path, "manifest.json")):
        yield from _dataset(path, side)
        return
    if side is not None:
        raise InputError("only a dataset has a held-out side", where=path, next="leave `held_out` out, or name a curated dataset")
    for item in list_files(path, SUFFIXES):
        where, name = place(path, item.path), item.path.lower()
        try:
            if name.endswith(".parquet"):
                for part in group_runs(path, item, list(fields)):
                    for _, row in numbered_rows(path, part.spec, list(fields)):
                        if isinstance(row, Reject):
                            raise row
                        yield from (str(row[f]) for f in fields if row[f] is not None)
            elif any(name.endswith(f".txt{end}") for end in ("", *COMPRESSIONS)):
                with opened(where) as stream:
                    yield stream.read(1 << 30).decode("utf-8", errors="replace")
            else:
                yield from _jsonl(where, fields)
        except Reject as reject:
            raise InputError("a set to compare with cannot be read", where=where, found=f"{reject.reason}: {reject.detail}") from None


def reference_files(path: str) -> list[str]:
    """The files whose bytes say what a set holds: all of its own, or a dataset's card, which names the rest by their hashes."""
    card = storage.join(path, "manifest.json")
    return [card] if storage.exists(card) else [place(path, item.path) for item in list_files(path, SUFFIXES)]


def _jsonl(where: str, fields: tuple[str, ...]) -> Iterator[str]:
    with opened(where) as stream:
        for at, line in lines(stream):
            if line is None:
                raise Reject("too_large", f"a line at byte {at}")
            if line.strip():
                row = parse(line)
                if isinstance(row, Reject):
                    raise row
                for name in fields:
                    value = field(row, name)
                    yield from map(str, value if isinstance(value, list) else [value])


def _dataset(path: str, side: tuple[float, int] | None) -> Iterator[str]:
    dataset = Dataset.open(path)
    for i in range(len(dataset.shards)):
        for record in living(dataset, i):
            if side is None or held_out(record.group, *side):
                yield from (s.text for s in record.segments if s.text)
