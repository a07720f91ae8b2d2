"""Pictures whose hashes are near, looked at cell by cell before one of them leaves: what `image_hash` and `clip_hash` share.

What comes in: pairs of records that a round found, and the records once more. What goes out: a row for each side of each pair with the cells of its
pictures as text, and of the two rows how far the pictures are apart, or None where they do not show the same (`pipelines/sketches.py`).
"""

from __future__ import annotations

from base64 import b85decode, b85encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from pipelines.across.evaluation_pictures import sketch_of
from pipelines.format.record import Record
from pipelines.sketches import CHANNELS, MEAN, RELATED, WORST, coarser, differences, grid_for, plain
from pipelines.stage import Row

Wanted = Mapping[str, Sequence[tuple[str, Sequence[int]]]]


def id_of(rank: str) -> str:
    """The id that a rank ends in."""
    return rank.rpartition(".")[2]


def carried(value: list[Any]) -> Row:
    """A row without a key, for what a later round needs: drops by their id, the rest together."""
    return int(value[1][:8], 16) if value[0] == "drop" else 0, b"", value


def wanted(pairs: Iterable[tuple[str, str, Sequence[tuple[int, int]]]]) -> dict[str, list[tuple[str, list[int]]]]:
    """id → (pair, segments to look at), of pairs (rank, rank, (segment, segment) …); a rank ends in the id."""
    out: dict[str, list[tuple[str, list[int]]]] = {}
    for a, b, places in pairs:
        out.setdefault(id_of(a), []).append((f"{a} {b}", [i for i, _ in places]))
        out.setdefault(id_of(b), []).append((f"{a} {b}", [j for _, j in places]))
    return out


def sides(record: Record, looks: Wanted, grid: int) -> Iterator[Row]:
    """A row for each pair that this record is in: (pair, id, cells of each place)."""
    cells: dict[int, str] = {}
    for pair, places in looks.get(record.id, ()):
        for k in set(places) - cells.keys():
            cells[k] = _packed(record.segments[k].payload, grid)
        key = sha256(pair.encode()).digest()
        yield int.from_bytes(key[:4], "little"), key, [pair, record.id, [cells[k] for k in places]]


def apart(x: str, y: str) -> int | None:
    """By how many levels two pictures differ at worst; None when they do not show the same, or cannot be told."""
    if not x or not y:
        return None
    a, b = (_unpacked(s) for s in (x, y))
    grid = min(a.shape[1], b.shape[1])
    a, b = (s if s.shape[1] == grid else s.reshape(1, grid, s.shape[1] // grid, grid, -1, CHANNELS).mean((2, 4)).astype(np.uint8) for s in (a, b))
    worst, mean, related = differences(a[0], b)
    return int(worst[0]) if worst[0] <= WORST and mean[0] <= MEAN and related[0] >= RELATED else None


def _packed(data: bytes | None, grid: int) -> str:
    """Cells of a picture as text; empty for what cannot be decoded or is plain."""
    sketches = sketch_of(data)[1] if data is not None else []
    if not sketches or plain(sketches[0].cells):
        return ""
    one = sketches[0]
    return b85encode(coarser(one.cells, min(grid, grid_for(one.side))).astype(np.uint8).tobytes()).decode()


def _unpacked(text: str) -> np.ndarray:
    cells = np.frombuffer(b85decode(text), np.uint8)
    grid = int((len(cells) // CHANNELS) ** 0.5)
    return cells.reshape(1, grid, grid, CHANNELS)
