"""Which rows are encoded together: a part is a run of rows of one parent shard, small enough to travel through the job as one value.

In: a curated dataset and a recipe. Out: the list of parts {part, fingerprint, shard, first, rows, other, images, references}, a pure
function of both, so that a resumed job finds the same parts. A part has at most 1,024 distinct images, 256 MiB of pictures and 256 MiB of
latents; one record is never split. Its fingerprint holds what the bytes depend on (the parent's hashes, the encoders' identities) and no
path, so a dataset that was moved is not encoded again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encode.encoder import Grid, ImageEncoder
from encode.encoders.reuse import Reuse
from encode.recipe import EncodeRecipe
from pipelines.format import codec
from pipelines.format.dataset import Dataset
from pipelines.format.document import fingerprint
from pipelines.format.errors import InputError
from pipelines.format.forgotten import forgotten_rows
from pipelines.format.part import FORMAT

VERSION = 1
MAX_IMAGES = 1024
MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Run:
    """Rows [first, first + rows) of a shard; `images` distinct ones, `references` to them."""

    first: int
    rows: int
    images: int
    references: int


def image_limit(grid: Grid | None, storage: str, batch: int = 1) -> int:
    """Distinct images a part may hold: whole batches, since what fills up the last one is computed and thrown away."""
    if grid is None or storage == "none":
        return MAX_IMAGES
    each = max(grid.height * grid.width * 3, codec.nbytes(storage, grid.tokens, grid.channels))
    limit = max(1, min(MAX_IMAGES, MAX_BYTES // each))
    return limit - limit % batch if limit > batch else limit


def image_offsets(index: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Of an index: the row of every image segment, and where its bytes begin. Equal payloads of a shard have equal offsets."""
    segments = index["segments"].combine_chunks()
    rows = pc.list_parent_indices(segments)
    flat = pc.list_flatten(segments)
    chosen = pc.equal(pc.struct_field(flat, "kind"), "image")
    offsets = pc.struct_field(flat, "offset").filter(chosen)
    return rows.filter(chosen).to_numpy(zero_copy_only=False), offsets.to_numpy(zero_copy_only=False)


def runs(rows: int, image_rows: np.ndarray, offsets: np.ndarray, limit: int) -> Iterator[Run]:
    """Greedy: rows are added while the distinct images stay within the limit."""
    starts = np.searchsorted(image_rows, np.arange(rows + 1))
    first, references = 0, 0
    held: set[int] = set()
    for row in range(rows):
        new = set(offsets[starts[row] : starts[row + 1]].tolist())
        if row > first and len(held | new) > limit:
            yield Run(first, row - first, len(held), references)
            first, held, references = row, set(), 0
        held |= new
        references += int(starts[row + 1] - starts[row])
    if rows > first:
        yield Run(first, rows - first, len(held), references)


def shard_runs(dataset: Dataset, i: int, limit: int) -> list[Run]:
    """The runs of one parent shard; a shard of text is one run."""
    shard = dataset.shards[i]
    if shard.data is None:
        return [Run(0, shard.records, 0, 0)] if shard.records else []
    return list(runs(shard.records, *image_offsets(dataset.index(i, ["segments"])), limit))


def encode_parts(recipe: EncodeRecipe, dataset: Dataset) -> list[dict[str, Any]]:
    """All parts of an encode job, numbered from 0."""
    if isinstance(recipe.images, Reuse):
        placed = reused_runs(dataset, Dataset.open(recipe.images.dataset))
    else:
        limit = image_limit(recipe.images.grid(), recipe.storage, recipe.images.batch) if recipe.images else MAX_IMAGES
        placed = [(i, None, run) for i in range(len(dataset.shards)) for run in shard_runs(dataset, i, limit)]
    identity, forgotten = encoding_identity(recipe), forgotten_rows(dataset)
    out = []
    for part, (i, other, run) in enumerate(placed):
        shard = dataset.shards[i]
        spec = {"shard": i, "first": run.first, "rows": run.rows, "other": other}
        inputs = [[shard.index_bytes, shard.index_sha256], [shard.data_bytes, shard.data_sha256]]
        gone = left_out(forgotten, i, run)
        said = {"format": FORMAT, "stage": "encode", "version": VERSION, **identity, "spec": {**spec, **gone}, "inputs": inputs}
        out.append({"part": part, "fingerprint": fingerprint(said), **spec, **gone, "images": run.images, "references": run.references})
    return out


def left_out(forgotten: dict[int, list[int]], i: int, run: Run) -> dict[str, list[int]]:
    """{gone: rows of a run of shard i, counted from its first, that tombstones name}; nothing without, so that a later tombstone makes anew only the
    parts that hold what it names."""
    gone = [row - run.first for row in forgotten.get(i, ()) if run.first <= row < run.first + run.rows]
    return {"gone": gone} if gone else {}


def encoding_identity(recipe: EncodeRecipe) -> dict[str, Any]:
    """What the encoded bytes depend on, apart from the records."""
    images: Any = None
    if isinstance(recipe.images, ImageEncoder):
        images = recipe.images.identity()
    elif isinstance(recipe.images, Reuse):
        images = Dataset.open(recipe.images.dataset).fingerprint
    text = {"version": recipe.text.version, **recipe.text.load().card()}
    return {"text": text, "image": images, "storage": recipe.storage, "shard_bytes": recipe.shard_bytes}


def reused_runs(dataset: Dataset, other: Dataset) -> list[tuple[int, int | None, Run]]:
    """One part per shard of the other dataset, so that each of our shards points into exactly one latents file. Rows of the parent that
    the other dataset lacks (an unreadable image) fall to the part before them."""
    if dataset.fingerprint not in [p["fingerprint"] for p in other.card["parents"]]:
        raise InputError(
            "latents can be reused only of a dataset that was encoded from the same curated one",
            where=other.path,
            found=f"parents {[p['fingerprint'][:16] for p in other.card['parents']]}",
            allowed=f"{dataset.path} with fingerprint {dataset.fingerprint[:16]}",
        )
    out: list[tuple[int, int | None, Run]] = []
    j = 0
    for i, shard in enumerate(dataset.shards):
        ids = dataset.index(i, ["id"])["id"].combine_chunks()
        starts: list[tuple[int, int | None]] = []
        while j < len(other.shards):
            first = pc.index(ids, other.index(j, ["id"])["id"][0]).as_py()
            if first < 0:
                break
            starts.append((first if starts else 0, j))
            j += 1
        starts = starts or [(0, None)]
        ends = [s[0] for s in starts[1:]] + [shard.records]
        out += [(i, j_, Run(first, end - first, 0, 0)) for (first, j_), end in zip(starts, ends, strict=True)]
    assert j == len(other.shards), "every shard of the other dataset begins with a record of the parent"
    return out
