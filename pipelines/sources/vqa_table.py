"""Questions about images as a table: one row a question, in JSON Lines, a JSON list, CSV or TSV, or in Parquet with the images inside.

    question, answer, image           columns by name, or by position in rows that are lists: `question: "0"`
    image: "images/{2}.png"           a template, relative to the table's folder
    answers                           further accepted answers (a column with a list); the first answer is the one trained on
    choices                           a column with a list, or `choice_list: [yes, no]` for all

All questions on one image are one record of independent turns (`per: image`), so its tokens are counted once; `per: question` makes a record of
each, which share the image's bytes in the shard. Parquet rows are records of their own. A question that cannot be used is one reject; the
other questions on its image stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, Literal

from pipelines.format.document import Size
from pipelines.format.errors import Reject
from pipelines.format.record import Record
from pipelines.image_rows import Item, Rows
from pipelines.listing import list_files
from pipelines.media.images import MAX_PIXELS
from pipelines.pictures import sound
from pipelines.row_groups import group_runs, numbered_rows
from pipelines.sources.image_parquet import image_bytes
from pipelines.stage import Rejected, Source, SourcePart
from pipelines.table import cell, template
from pipelines.turns import answered, ranked


class VqaTable(Source):
    """Keys name columns; `type` is a column, or a fixed word written `=word`. With `table: "*.parquet"`, `image` is the column of bytes."""

    data: ClassVar[str] = "vqa"
    path: str
    table: str
    image: str = "image"
    question: str = "question"
    answer: str = "answer"
    answers: str | None = None
    choices: str | None = None
    choice_list: tuple[str, ...] = ()
    type: str | None = None
    per: Literal["image", "question"] = "image"
    licence: str | None = None
    max_pixels: Size = MAX_PIXELS

    @property
    def _parquet(self) -> bool:
        return self.table.lower().endswith(".parquet")

    def _rows(self) -> Rows:
        return Rows(self.path, self.table, lambda row: [template(self.image, row)], self._question, merge=self.per == "image")

    def _columns(self) -> list[str]:
        typed = self.type if self.type and not self.type.startswith("=") else None
        return [c for c in dict.fromkeys((self.image, self.question, self.answer, self.answers, self.choices, typed)) if c]

    def parts(self) -> list[SourcePart]:
        if not self._parquet:
            return self._rows().parts()
        return [part for item in list_files(self.path, (".parquet",)) for part in group_runs(self.path, item, self._columns())]

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        for item in self._cells(spec) if self._parquet else self._rows().items(spec):
            if isinstance(item, Rejected):
                yield item
                continue
            rows = [(f"{spec.get('table', '')}#{number}", row) for number, row, _ in item.rows]
            yield from answered(source, item, [(o, partial(self._question, row)) for o, row in rows], self.max_pixels, licence=self.licence)

    def _cells(self, spec: dict[str, Any]) -> Iterator[Item | Rejected]:
        for origin, row in numbered_rows(self.path, spec, self._columns()):
            try:
                if isinstance(row, Reject):
                    raise row
                yield Item(origin, [(origin, image_bytes(row[self.image]))], [(0, row, None)])
            except Reject as reject:
                yield Rejected(origin, reject.reason, reject.detail)

    def _question(self, row: Any) -> dict[str, Any]:
        first = cell(row, self.answer)
        more = cell(row, self.answers) if self.answers else []
        given = [*(first if isinstance(first, list) else [first]), *(more if isinstance(more, list) else [more])]
        answers = ranked([str(a).strip() for a in given if a is not None], first=None if isinstance(first, list) else str(first).strip())
        if not answers:
            raise Reject("empty", "a question without an answer")
        asked = sound(cell(row, self.question)).strip()
        if not asked:
            raise Reject("empty", "an answer without a question")
        out: dict[str, Any] = {"question": asked, "answers": [sound(a) for a in answers]}
        choices = cell(row, self.choices) if self.choices else list(self.choice_list)
        if choices:
            out["choices"] = [str(c) for c in choices]
        if self.type:
            out["type"] = self.type[1:] if self.type.startswith("=") else str(cell(row, self.type))
        return out
