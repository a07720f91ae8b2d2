"""Conversations about images: LLaVA's and Cambrian's JSON, chat messages, The Cauldron's Parquet; and VQA v2's questions with annotations.

    [{"id", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat …?"}, {"from": "gpt", "value": "…"}, …]}]
    [{"image": …, "messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}]
    Parquet of images: list<{bytes, path}>, texts: list<{user, assistant}>
    {"questions": [{"image_id", "question_id", "question"}]} with {"annotations": [{"question_id", "answers": [{"answer"}], …}]}

A conversation is one record, its exchanges are the turns; with more than one, `fields.dialogue` says that later turns lean on earlier ones.
VQA v2's questions on one image are one record of independent turns. A list of a gigabyte streams; JSON Lines and CSV work as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from pipelines.conversations import exchanges, images_named, messages
from pipelines.format.errors import InputError, Reject
from pipelines.format.record import Record
from pipelines.image_rows import Item
from pipelines.listing import list_files, place
from pipelines.question_text import Limits
from pipelines.row_groups import column_names
from pipelines.stage import Rejected, SourcePart
from pipelines.table import cell, matching, template
from pipelines.turns import answered, ranked, votes, vqa_record
from pipelines.vqa_source import VqaSource

_TALK = ("conversations", "messages", "texts")


class VqaJson(VqaSource):
    """`image` is a column, or a template such as `train2014/COCO_train2014_{image_id:012}.jpg`, relative to the table's folder. `conversation` is the
    column of turns; by default `conversations`, `messages` or `texts`, whichever there is. `annotations` makes it VQA v2's pair of files.
    `independent: true` says that a conversation's turns do not lean on one another: their pictures then stand in front of all of them."""

    table: str = "*.json"
    conversation: str | None = None
    annotations: str | None = None
    independent: bool = False

    def merged(self) -> bool:
        return self.annotations is not None

    def rows(self, **more: Any) -> Any:
        if self.annotations is None:
            return super().rows()
        return super().rows(key=self.key or "questions", joined=self.annotations, joined_key="annotations")

    def columns(self) -> list[str]:
        """For Parquet and for slices of tables; a conversation column that is not named is looked for in the first file."""
        images = [self.image] if isinstance(self.image, str) else list(self.image)
        if self.conversation is not None:
            return [*images, self.conversation]
        if not self.parquet:
            return [*images, *_TALK, "id"]
        files = [f.path for f in list_files(self.path, (".parquet",))]
        first = matching(self.table, files)[0]
        try:
            known = column_names(place(self.path, first))
        except Reject:
            return images
        talk = [name for name in _TALK if name in known]
        if not talk:
            there = {"found": ", ".join(known[:50]), "allowed": ", ".join(_TALK)}
            raise InputError("no column of conversations", where=first, **there, next="name it with `conversation`")
        return [*images, talk[0], *(["id"] if "id" in known else [])]

    def parts(self) -> list[SourcePart]:
        if self.annotations is not None and self.held != "path":
            raise InputError("VQA v2's pair of files names images beside it", where=self.path, found=f"images_are: {self.held}")
        return super().parts()

    def usable(self, row: Any) -> None:
        if self.annotations is not None:
            cell(row, "question")
        else:
            exchanges(messages(self._talk(row)), len(self.named(row)), self.limits)

    def named(self, row: Any) -> list[Any]:
        out: list[Any] = []
        for column in (self.image,) if isinstance(self.image, str) else self.image:
            if "{" in column:
                out.append(template(column, row))
                continue
            found = row.get(column) if isinstance(row, dict) else cell(row, column)
            out += [ref for ref in (found if isinstance(found, list) else [found]) if ref is not None and ref != ""]
        if not out and self.annotations is None:
            return images_named(messages(self._talk(row)))
        return out

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        yield from self.told_once(self._all(spec, source))

    def _all(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        limits = self.limits
        for item in self.items(spec):
            if isinstance(item, Rejected):
                yield item
                continue
            if self.annotations is not None:
                rows = [(f"{spec['table']}#{number}", partial(_annotated, row, note, limits)) for number, row, note in item.rows]
                yield from answered(source, item, rows, self.max_pixels, self.max_turns, self.repeats == "keep", licence=self.licence)
                continue
            try:
                yield self._conversation(source, item, limits)
            except Reject as reject:
                yield Rejected(item.origin, reject.reason, reject.detail)

    def _conversation(self, source: str, item: Item, limits: Limits) -> Record:
        row = item.rows[0][1]
        questions, system = exchanges(messages(self._talk(row)), len(item.images), limits, in_place=not self.independent)
        fields: dict[str, Any] = dict(item.fields)
        if isinstance(row, dict) and row.get("id") is not None:
            fields["source_id"] = limits.tidy(str(row["id"]))
        if len(questions) > 1 and not self.independent:
            fields["dialogue"] = True
        if system:
            fields["system"] = limits.tidy(system)
        return vqa_record(source, item, questions, self.max_pixels, fields=fields, licence=self.licence, url=item.url)

    def _talk(self, row: Any) -> Any:
        if self.conversation is not None:
            return cell(row, self.conversation)
        return next((row[name] for name in _TALK if row.get(name)), None) if isinstance(row, dict) else None


def _annotated(row: dict[str, Any], note: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """VQA v2: the answer to train on is the one most of the ten people gave, which its files name `multiple_choice_answer`."""
    given = [a.get("answer") if isinstance(a, dict) else a for a in note.get("answers") or []]
    best = note.get("multiple_choice_answer")
    people = [limits.tidy(a) for a in given if isinstance(a, str)]
    answers = ranked(people, first=limits.tidy(best) if isinstance(best, str) else None)
    if not answers:
        raise Reject("empty", "a question without an answer")
    asked = limits.tidy(cell(row, "question"))
    if not asked:
        raise Reject("empty", "an answer without a question")
    kind = note.get("question_type") or note.get("answer_type")
    return {"question": asked, "answers": answers, **votes(people, answers), **({"type": str(kind)} if kind else {})}
