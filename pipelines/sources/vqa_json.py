"""Questions about images as JSON: LLaVA's and Cambrian's conversations, chat messages, and VQA v2's questions with annotations.

    [{"id", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat …?"}, {"from": "gpt", "value": "…"}, …]}]
    [{"image": …, "messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}]
    {"questions": [{"image_id", "question_id", "question"}]} with {"annotations": [{"question_id", "answers": [{"answer"}], …}]}

A conversation is one record, its exchanges are the turns; with more than one, `fields.dialogue` says that later turns lean on earlier ones.
VQA v2's questions on one image are one record of independent turns. A list of a gigabyte streams; JSON Lines work as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

from pipelines.format.document import Size
from pipelines.format.errors import Reject
from pipelines.format.record import Record
from pipelines.image_rows import Item, Rows
from pipelines.media.images import MAX_PIXELS
from pipelines.pictures import sound
from pipelines.stage import Rejected, Source, SourcePart
from pipelines.table import cell, template
from pipelines.turns import answered, ranked, vqa_record

_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant", "model")
_MARKS = ("<image>", "<video>")


class VqaJson(Source):
    """`table` is the file of conversations or questions below `path` (`*` for several); `image` a column, or a template such as
    `train2014/COCO_train2014_{image_id:012}.jpg`, relative to the table's folder. `annotations` makes it VQA v2's pair of files.
    `independent: true` says that a conversation's turns do not lean on one another."""

    data: ClassVar[str] = "vqa"
    path: str
    table: str = "*.json"
    image: str = "image"
    annotations: str | None = None
    independent: bool = False
    licence: str | None = None
    max_pixels: Size = MAX_PIXELS

    def _rows(self) -> Rows:
        keys = {"key": "questions", "joined": self.annotations, "joined_key": "annotations"}
        return Rows(self.path, self.table, self._images_of, self._usable, merge=self.annotations is not None, **keys)  # type: ignore[arg-type]

    def _usable(self, row: Any) -> None:
        if self.annotations is not None:
            cell(row, "question")
        else:
            _exchanges(_turns(row))

    def _images_of(self, row: Any) -> list[str]:
        if "{" not in self.image:
            if isinstance(row, dict) and row.get(self.image) is None:
                raise Reject("empty", "a conversation without an image")
            value = cell(row, self.image)
            if isinstance(value, list) and value:
                return [sound(v) for v in value]
        return [template(self.image, row)]

    def parts(self) -> list[SourcePart]:
        return self._rows().parts()

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        for item in self._rows().items(spec):
            if isinstance(item, Rejected):
                yield item
                continue
            if self.annotations is not None:
                rows = [(f"{spec['table']}#{number}", partial(_annotated, row, note)) for number, row, note in item.rows]
                yield from answered(source, item, rows, self.max_pixels, licence=self.licence)
                continue
            try:
                yield self._conversation(source, item)
            except Reject as reject:
                yield Rejected(item.origin, reject.reason, reject.detail)

    def _conversation(self, source: str, item: Item) -> Record:
        row = item.rows[0][1]
        questions = _exchanges(_turns(row))
        fields: dict[str, Any] = {"source_id": str(row["id"])} if row.get("id") is not None else {}
        if len(questions) > 1 and not self.independent:
            fields["dialogue"] = True
        return vqa_record(source, item, questions, self.max_pixels, fields=fields, licence=self.licence)


def _annotated(row: dict[str, Any], note: dict[str, Any]) -> dict[str, Any]:
    """VQA v2: the answer to train on is the one most of the ten people gave, which its files name `multiple_choice_answer`."""
    given = [a.get("answer") if isinstance(a, dict) else a for a in note.get("answers") or []]
    best = note.get("multiple_choice_answer")
    answers = ranked([a for a in given if isinstance(a, str)], first=best if isinstance(best, str) else None)
    if not answers:
        raise Reject("empty", "a question without an answer")
    out = {"question": sound(cell(row, "question")).strip(), "answers": answers}
    kind = note.get("question_type") or note.get("answer_type")
    return {**out, "type": str(kind)} if kind else out


def _turns(row: Any) -> Any:
    return (row.get("conversations") or row.get("messages")) if isinstance(row, dict) else None


def _exchanges(turns: Any) -> list[dict[str, Any]]:
    """Question and answer pairs of a conversation; system messages are passed over, anything else out of order is a `Reject`."""
    if not isinstance(turns, list) or not turns:
        raise Reject("unreadable", "no list under `conversations` or `messages`")
    out: list[dict[str, Any]] = []
    asked: str | None = None
    for turn in turns:
        who, said = _said(turn)
        if who in _ASKS and asked is None:
            asked = said
        elif who in _ANSWERS and asked:
            if said:
                out.append({"question": asked, "answers": [said]})
            asked = None
        elif who != "system":
            raise Reject("unreadable", f"a conversation is question, answer, question, …; found {who[:40]!r} after turn {len(out)}")
    if not out:
        raise Reject("empty", "a conversation without an answer")
    return out


def _said(turn: Any) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise Reject("unreadable", "a turn of a conversation is a mapping")
    who, said = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if isinstance(said, list):  # chat messages: a list of {type: text | image}
        said = "\n".join(p["text"] for p in said if isinstance(p, dict) and isinstance(p.get("text"), str))
    text = sound(said)
    for mark in _MARKS:
        text = text.replace(mark, "")
    return str(who), text.strip()
