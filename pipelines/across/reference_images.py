"""Pictures of evaluation sets, wherever they lie: a curated dataset, a folder or tars of image files, a table that names or holds them, or hashes.

What comes in: a `ReferenceImages`. What goes out: (name, bytes) of every picture of the set, names relative to its path. What is missing is an
error, since a set with holes would let through what it was meant to catch; what is there and cannot be decoded is still known by its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from posixpath import dirname, normpath
from posixpath import join as posix_join
from typing import Any

from pipelines.across.decontaminate import HeldOut
from pipelines.bounded import opened
from pipelines.format import storage
from pipelines.format.chance import held_out
from pipelines.format.dataset import Dataset
from pipelines.format.document import Document
from pipelines.format.errors import InputError, Reject
from pipelines.format.forgotten import living
from pipelines.listing import Input, list_files, place
from pipelines.pictures import SUFFIXES as IMAGES
from pipelines.row_groups import group_runs, numbered_rows
from pipelines.sources.image_parquet import image_bytes
from pipelines.sources.image_tar import TARS
from pipelines.table import SUFFIXES as TABLES
from pipelines.table import scan, template
from pipelines.tar_stream import members

_PARQUET = (".parquet",)


class ReferenceImages(Document):
    """One set. `image_field`: the column of bytes of a Parquet file, or of a table the image's path (a column, or a template such as
    `images/{id}.jpg`), relative to `images`, which is the table's folder unless given. `hashes`: `path` is a list of hashes instead, as
    `hash_denylist` reads them. `held_out`: of a dataset, only that side of the split."""

    path: str
    image_field: str = "image"
    images: str | None = None
    hashes: bool = False
    held_out: HeldOut | None = None


def reference_images(reference: ReferenceImages) -> Iterator[tuple[str, bytes]]:
    """Every picture of a set that is not a list of hashes, each name once. Raises `InputError` for what cannot be read."""
    if is_dataset(reference.path):
        yield from _of_dataset(reference)
        return
    if reference.held_out is not None:
        raise InputError("only a dataset has a held-out side", where=reference.path, next="leave `held_out` out, or name a curated dataset")
    for item in list_files(reference.path, IMAGES + TARS + _PARQUET + _tables(reference)):
        try:
            yield from _of_file(reference, item)
        except Reject as reject:
            where = place(reference.path, item.path)
            raise InputError("an evaluation set cannot be read", where=where, found=f"{reject.reason}: {reject.detail}") from None


def image_files(reference: ReferenceImages) -> list[str]:
    """The files whose bytes say what a set holds: all of its own, or a dataset's card, which names the rest by their hashes."""
    if is_dataset(reference.path):
        return [storage.join(reference.path, "manifest.json")]
    if reference.hashes:
        return [reference.path]
    found = [place(reference.path, f.path) for f in list_files(reference.path, IMAGES + TARS + _PARQUET + _tables(reference))]
    shown = (where for table in found if table.lower().endswith(TABLES) for _, where in named(reference, table))
    return list(dict.fromkeys(chain(found, shown)))


def is_dataset(path: str) -> bool:
    """Whether this is an artifact of ours."""
    return storage.exists(storage.join(path, "manifest.json"))


def _tables(reference: ReferenceImages) -> tuple[str, ...]:
    """Tables are read where the path is one: beside images in a folder they are notes about them."""
    return TABLES if reference.path.lower().endswith(TABLES) else ()


def _of_dataset(reference: ReferenceImages) -> Iterator[tuple[str, bytes]]:
    dataset, side, seen = Dataset.open(reference.path), reference.held_out, set[tuple[int, int | None]]()
    for i in range(len(dataset.shards)):
        for record in living(dataset, i):
            if side is not None and not held_out(record.group, side.fraction, side.seed):
                continue
            pictures = [s for s in record.segments if s.kind == "image"]
            for k, s in enumerate(pictures):
                if (i, s.offset) not in seen:  # samples of one trajectory share their frames
                    seen.add((i, s.offset))
                    yield f"{record.origin}#{k}" if len(pictures) > 1 else record.origin, bytes(dataset.payload(i, s))


def _of_file(reference: ReferenceImages, item: Input) -> Iterator[tuple[str, bytes]]:
    where, name = place(reference.path, item.path), item.path.lower()
    if name.endswith(IMAGES):
        yield item.path, storage.read(where)
    elif name.endswith(TARS):
        with opened(where) as stream:
            for member, content in members(stream, IMAGES):
                if isinstance(content, Reject):
                    raise content
                yield f"{item.path}!{member}", content
    elif name.endswith(_PARQUET):
        for part in group_runs(reference.path, item, [reference.image_field]):
            for origin, row in numbered_rows(reference.path, part.spec, [reference.image_field]):
                if isinstance(row, Reject):
                    raise row
                cell: Any = row[reference.image_field]
                for k, one in enumerate(cell if isinstance(cell, list) else [cell]):
                    yield f"{origin}.{k}" if isinstance(cell, list) else origin, image_bytes(one)
    else:
        for image, path in named(reference, where):
            yield image, storage.read(path)


def named(reference: ReferenceImages, table: str) -> Iterator[tuple[str, str]]:
    """(path as the table says it, where that lies) of each image that a table names, once."""
    seen = set[str]()
    for row in scan(table):
        if row.problem is not None:
            raise InputError("a row of an evaluation set cannot be read", where=f"{table}, row {row.number}", found=row.problem.detail)
        try:
            image = template(reference.image_field, row.value)
        except Reject as reject:
            raise InputError("this row names no image", where=f"{table}, row {row.number}", found=reject.detail, next="set `image_field`") from None
        if image not in seen:
            seen.add(image)
            yield image, beside(reference.images or dirname(table), image)


def beside(folder: str, image: str) -> str:
    """Where an image lies that a table names relative to a folder; evaluation tables are the operator's own, so it may lie anywhere."""
    return storage.join(folder, image) if "://" in folder else normpath(posix_join(folder, image))
