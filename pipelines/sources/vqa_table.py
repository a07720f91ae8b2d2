"""Questions about images as a table: one row a question, in JSON Lines, a JSON list or object, CSV, TSV or Parquet.

    question, answer, image           columns by name, or by position in rows that are lists: `question: "0"`
    image: "images/{2}.png"           a template, relative to the table's folder; several columns are several images
    answers                           further accepted answers (a column with a list); the first answer is the one trained on
    choices                           a column with a list, columns `[A, B, C, D]`, or `choice_list: [yes, no]` for all
    answer_is                         text, letter, index0 or index1: how the table says which choice is right

All questions on one image are one record of independent turns (`per: image`), so its tokens are counted once; `per: question` makes a record of
each, which share the image's bytes in the shard. A question that cannot be used is one reject; the other questions on its image stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

from pipelines.conversations import MARK, marked
from pipelines.format.record import Record
from pipelines.question_text import AnswerIs, Columns, Limits
from pipelines.stage import Rejected
from pipelines.table import cell, template
from pipelines.turns import answered
from pipelines.vqa_source import VqaSource


class VqaTable(VqaSource):
    """Keys name columns; `type` is a column, or a fixed word written `=word`."""

    question: str = "question"
    answer: str = "answer"
    answers: str | None = None
    answer_is: AnswerIs = "text"
    choices: str | tuple[str, ...] | None = None
    choice_list: tuple[str, ...] = ()
    hint: str | None = None
    type: str | None = None
    per: Literal["image", "question"] = "image"

    @property
    def _asked(self) -> Columns:
        return Columns(self.question, self.answer, self.answers, self.answer_is, self.choices, self.choice_list, self.hint, self.type)

    def _image_columns(self) -> tuple[str, ...]:
        return self.image if isinstance(self.image, tuple) else (self.image,)

    def columns(self) -> list[str]:
        holes = [name for column in self._image_columns() for name in _holes(column)]
        whole = [c for c in self._image_columns() if "{" not in c]
        return list(dict.fromkeys(c.partition(".")[0] for c in (*whole, *holes, *self._asked.names())))

    def named(self, row: Any) -> list[Any]:
        out: list[Any] = []
        for column in self._image_columns():
            if "{" in column:
                if all(cell(row, name) not in (None, "") for name in _holes(column)):
                    out.append(template(column, row))
                continue
            found = cell(row, column)
            given = found if isinstance(found, list) else [found]
            out += [str(ref) if isinstance(ref, int) else ref for ref in given if ref is not None and ref != ""]
        return out

    def usable(self, row: Any) -> None:
        self._asked.read(row, self.limits)

    def merged(self) -> bool:
        return self.per == "image"

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        yield from self.told_once(self._all(spec, source))

    def _all(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        file = spec.get("table", spec.get("file", ""))
        for item in self.items(spec):
            if isinstance(item, Rejected):
                yield item
                continue
            read = partial(_question, self._asked, self.limits, len(item.images), len(item.rows) == 1)
            rows = [(f"{file}#{number}", partial(read, row)) for number, row, _ in item.rows]
            if len(rows) == 1 and item.origin.startswith(f"{file}#"):
                rows = [(item.origin, rows[0][1])]
            rest = {"licence": self.licence, "fields": item.fields, "url": item.url}
            yield from answered(source, item, rows, self.max_pixels, self.max_turns, self.repeats == "keep", **rest)


def _question(asked: Columns, limits: Limits, images: int, alone: bool, row: Any) -> dict[str, Any]:
    """The question of a row; marked pictures stay among its words where no other question shares them."""
    q = asked.read(row, limits)
    if MARK.search(q["question"]):
        q["question"], at = marked(q["question"], images, limits, alone)
        if at:
            q["image_at"] = at
    return q


def _holes(pattern: str) -> list[str]:
    return [name.partition("}")[0].partition(":")[0] for name in pattern.split("{")[1:]]
