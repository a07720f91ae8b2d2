"""Contact sheets: pictures side by side as one PNG, so that a person looks before trusting a number.

In: sets of pictures of one size, such as originals and reconstructions. Out: one picture in which the k-th of each set stand above one another. Small
pictures are enlarged by whole factors without smoothing (what is blurred is the decoder's doing), large ones are reduced.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.format import storage
from pipelines.format.index import record_of
from pipelines.format.record import Segment
from pipelines.media import images

LEAST, MOST = 96, 256  # pixels of a shown picture's longer side
GAP, APART = 4, 12  # white pixels between the pictures of a group, and between groups


def tiled(sets: Sequence[Sequence[np.ndarray]], columns: int = 8) -> np.ndarray:
    """`sets[s][k]` uint8 [h, w, 3], all sets of one length -> uint8 [H, W, 3]: row by row of `columns` pictures, set under set."""
    n = len(sets[0])
    assert n and all(len(s) == n for s in sets), "every set shows the same pictures"
    columns = min(columns, n)
    shown = [[sized(picture) for picture in s] for s in sets]
    h, w = (max(p.shape[axis] for s in shown for p in s) for axis in (0, 1))
    rows = -(-n // columns)
    group = len(sets) * (h + GAP) - GAP
    sheet = np.full((rows * group + (rows + 1) * APART, columns * (w + GAP) - GAP + 2 * APART, 3), 255, np.uint8)
    for s, pictures in enumerate(shown):
        for k, picture in enumerate(pictures):
            top = APART + k // columns * (group + APART) + s * (h + GAP)
            left = APART + k % columns * (w + GAP)
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def sized(picture: np.ndarray) -> np.ndarray:
    """Enlarged by a whole factor to about 96 pixels, or reduced to 256."""
    longest = max(picture.shape[:2])
    if longest > MOST:
        height, width = (max(1, round(side * MOST / longest)) for side in picture.shape[:2])
        return images.stretch(picture, height, width)
    factor = max(1, round(LEAST / longest))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def spread(root: str, shards: Sequence[dict[str, object]], n: int) -> list[np.ndarray]:
    """About `n` pictures from all over the committed shards of a curated dataset, one a record, evenly spaced: the first that takes loss, or the
    first there is. Shards are given as commit records have them, since the card is not written yet."""
    total = sum(int(str(s["records"])) for s in shards)
    wanted = sorted({k * total // min(n, total) for k in range(min(n, total))}) if total else []
    found: list[np.ndarray] = []
    start = 0
    for s in shards:
        stop = start + int(str(s["records"]))
        rows = [k - start for k in wanted if start <= k < stop]
        if rows and s["data"] is not None:
            table = pq.read_table(pa.BufferReader(storage.read(storage.join(root, str(s["index"])))))
            for row in table.take(rows).to_pylist():
                if (segment := _shown(record_of(row).segments)) is not None:
                    offset, size = segment.offset or 0, segment.nbytes or 0
                    found.append(images.decode(storage.read(storage.join(root, str(s["data"])), offset, offset + size)))
        start = stop
    return found


def _shown(segments: Sequence[Segment]) -> Segment | None:
    pictures = [s for s in segments if s.kind == "image"]
    return next((s for s in pictures if s.role == "target"), pictures[0] if pictures else None)
