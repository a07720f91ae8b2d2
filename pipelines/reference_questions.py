"""Questions of evaluation sets, with the pictures they are asked about: what `decontaminate_questions` compares with.

What comes in: a `ReferenceQuestions`, a curated dataset of questions or a table (JSON Lines, a JSON list, CSV, TSV, Parquet). What goes out:
(question, name of its picture or None, how to read that picture). A row without its question is an error: a set with holes would let through
what it was meant to catch.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from posixpath import dirname
from typing import Any, NamedTuple

from pipelines.across.decontaminate import HeldOut
from pipelines.across.reference_images import ReferenceImages, beside, is_dataset, named
from pipelines.format import storage
from pipelines.format.chance import held_out
from pipelines.format.dataset import Dataset
from pipelines.format.document import Document
from pipelines.format.errors import InputError, Reject
from pipelines.format.forgotten import living
from pipelines.listing import Input, list_files, place
from pipelines.row_groups import group_runs, numbered_rows
from pipelines.sources.image_parquet import image_bytes
from pipelines.table import SUFFIXES as TABLES
from pipelines.table import cell, scan, template


class ReferenceQuestions(Document):
    """One set. `question_field` is a column (or a position in rows that are lists); a column may hold a list of questions. `image_field`, a
    column or a template, names the picture relative to `images`, which is the table's folder unless given (in Parquet, the column of bytes);
    without it questions have no picture. `held_out`: of a dataset, only that side of the split."""

    path: str
    question_field: str = "question"
    image_field: str | None = None
    images: str | None = None
    held_out: HeldOut | None = None


class Asked(NamedTuple):
    """One question; `picture` reads the bytes of the image it is about."""

    question: str
    image: str | None
    picture: Callable[[], bytes] | None


def words_asked(text: str) -> list[str]:
    """A question as copies are compared: NFKC, lower case, words of letters and digits alone."""
    folded = unicodedata.normalize("NFKC", text).lower()
    return "".join(c if c.isalnum() else " " for c in folded).split()


def question_files(reference: ReferenceQuestions) -> list[str]:
    """The files whose bytes say what is asked about what: a dataset's card, or the tables and the images that they name."""
    if is_dataset(reference.path):
        return [storage.join(reference.path, "manifest.json")]
    out = [place(reference.path, item.path) for item in _tables(reference.path)]
    if reference.image_field is not None:
        for table in [t for t in out if not t.lower().endswith(".parquet")]:
            pictures = ReferenceImages(path=table, image_field=reference.image_field, images=reference.images)
            out += [where for _, where in named(pictures, table)]
    return list(dict.fromkeys(out))


def question_tables(reference: ReferenceQuestions) -> list[Input]:
    """The tables, or a dataset's card, as they are listed now: what says whether a set that is held in memory is still the same."""
    return list_files(question_files(reference)[0]) if is_dataset(reference.path) else _tables(reference.path)


def reference_questions(reference: ReferenceQuestions) -> Iterator[Asked]:
    """Every question of a set. Raises `InputError` for what cannot be read."""
    if is_dataset(reference.path):
        yield from _of_dataset(reference)
        return
    if reference.held_out is not None:
        raise InputError("only a dataset has a held-out side", where=reference.path, next="leave `held_out` out, or name a curated dataset")
    for item in _tables(reference.path):
        rows = _of_parquet(reference, item) if item.path.lower().endswith(".parquet") else _of_table(reference, item)
        try:
            for value, image, picture in rows:
                for question in value if isinstance(value, list) else [value]:
                    if not isinstance(question, str):
                        raise Reject("unreadable", f"a question that is no text: {str(question)[:80]!r}")
                    yield Asked(question, image, picture)
        except Reject as reject:
            where = place(reference.path, item.path)
            raise InputError("a set of questions cannot be read", where=where, found=f"{reject.reason}: {reject.detail}") from None


def _tables(path: str) -> list[Input]:
    return list_files(path, (*TABLES, ".parquet"))


def _of_dataset(reference: ReferenceQuestions) -> Iterator[Asked]:
    dataset, side = Dataset.open(reference.path), reference.held_out
    for i in range(len(dataset.shards)):
        for record in living(dataset, i):
            if side is not None and not held_out(record.group, side.fraction, side.seed):
                continue
            pictures = [s for s in record.segments if s.kind == "image"]
            for asked in record.fields.get("questions") or ():
                for k, s in enumerate(pictures):
                    yield Asked(str(asked["question"]), f"{record.origin}#{k}", partial(_payload, dataset, i, s))
                if not pictures:
                    yield Asked(str(asked["question"]), None, None)


def _payload(dataset: Dataset, i: int, segment: Any) -> bytes:
    return bytes(dataset.payload(i, segment))


def _of_table(reference: ReferenceQuestions, item: Input) -> Iterator[tuple[Any, str | None, Callable[[], bytes] | None]]:
    where = place(reference.path, item.path)
    for row in scan(where):
        if row.problem is not None:
            raise row.problem
        question = cell(row.value, reference.question_field)
        if reference.image_field is None:
            yield question, None, None
        else:
            image = template(reference.image_field, row.value)
            yield question, image, partial(storage.read, beside(reference.images or dirname(where), image))


def _of_parquet(reference: ReferenceQuestions, item: Input) -> Iterator[tuple[Any, str | None, Callable[[], bytes] | None]]:
    columns = [c for c in (reference.question_field, reference.image_field) if c]
    for part in group_runs(reference.path, item, columns):
        for origin, row in numbered_rows(reference.path, part.spec, columns):
            if isinstance(row, Reject):
                raise row
            picture = partial(image_bytes, row[reference.image_field]) if reference.image_field else None
            yield row[reference.question_field], origin if picture else None, picture
