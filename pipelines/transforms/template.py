"""How a question is put to the model: `Question: what colour is the circle? Answer:` and ` red`.

Written from `fields.questions`, which keep the bare question, answers, choices and hint, so a template can be changed without reading the raw
data again. The answer mark at the end of the question tells the model that an answer, not more question, comes next; the answer's leading
space makes its first token the one that the same word has in running text. Pictures inside a question keep their places in it.

Where the answer takes another form than its own words, a letter for instance, `fields.questions[i].shown` keeps answers and choices in that form:
evaluations compare with it. `shuffle` orders the choices of each question by a draw on the record, which leaves no place a favourite.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from pipelines.format.chance import draw
from pipelines.format.record import Record
from pipelines.stage import Transform
from pipelines.turns import turn_segments
from pipelines.wording import ANSWERING, ASKING, CHOICE, PLAIN, Wording, problem

_FIELDS = {"question": ASKING, "with_choices": ASKING, "answer": ANSWERING, "answer_with_choices": ANSWERING, "choice": CHOICE, "hint": ("hint",)}


class Template(Transform):
    """The patterns are those of `pipelines.wording.Wording`. `system: record` says a conversation's own system message."""

    version: ClassVar[int] = 2  # 2: dialogues' later questions begin a line of their own
    question: str = PLAIN.question
    with_choices: str | None = None
    answer: str = PLAIN.answer
    answer_with_choices: str | None = None
    hint: str = PLAIN.hint
    choice: str | None = None
    between: str = PLAIN.between
    instruction: str = ""
    instruction_for_choices: str = ""
    short: int = Field(PLAIN.short, ge=0)
    follows: str = PLAIN.follows
    system: str = ""
    shuffle: bool = False
    seed: int = 0

    @field_validator(*_FIELDS)
    @classmethod
    def _known(cls, value: str | None, info: ValidationInfo) -> str | None:
        wrong = problem(value or "", _FIELDS[str(info.field_name)])
        if wrong:
            raise ValueError(wrong)
        return value

    def apply(self, record: Record) -> Iterable[Record]:
        questions = record.fields.get("questions")
        if record.data != "vqa" or not questions:
            yield record
            return
        wording = Wording(**self.model_dump(exclude={"shuffle", "seed"}))
        if self.system == "record":
            wording = replace(wording, system=str(record.fields.get("system", "")))
        if self.shuffle:
            questions = [self._shuffled(record, q) for q in questions]
        shared = tuple(s for s in record.segments if s.turn < 0)
        inside = [s for s in record.segments if s.turn >= 0 and s.kind == "image"]
        turns = turn_segments(questions, inside, wording, bool(record.fields.get("dialogue")))
        kept = []
        for q in questions:
            shown = wording.shown(q)
            bare = {k: v for k, v in q.items() if k != "shown"}
            kept.append({**bare, "shown": shown} if shown else bare)
        yield replace(record, segments=(*shared, *turns), fields={**record.fields, "questions": kept})

    def _shuffled(self, record: Record, q: dict[str, Any]) -> dict[str, Any]:
        """The question with its choices in another order, and its `choice` with them."""
        choices = q.get("choices") or []
        if len(choices) < 2:
            return q
        order = sorted(range(len(choices)), key=lambda i: (int(draw(record.h, self.seed, "choices", q["turn"], i)), i))
        moved = {"choice": order.index(q["choice"])} if isinstance(q.get("choice"), int) else {}
        return {**q, "choices": [choices[i] for i in order], **moved}
