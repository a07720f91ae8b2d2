"""How a question is put to the model: `Question: what colour is the circle? Answer:` and ` red`.

Written from `fields.questions`, which keep the bare question, answers and choices, so a template can be changed without reading the raw
data again. The answer mark at the end of the question tells the model that an answer, not more question, comes next; the answer's leading
space makes its first token the one that the same word has in running text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from string import Formatter

from pydantic import ValidationInfo, field_validator

from pipelines.format.record import Record
from pipelines.stage import Transform
from pipelines.turns import ANSWER, QUESTION, turn_segments


class Template(Transform):
    """`question` may use {question} and {choices} (`a, b or c`); `answer` uses {answer}. `with_choices` takes the place of `question` where a
    question has choices."""

    question: str = QUESTION
    with_choices: str | None = None
    answer: str = ANSWER

    @field_validator("question", "with_choices", "answer")
    @classmethod
    def _known(cls, value: str | None, info: ValidationInfo) -> str | None:
        allowed = {"answer"} if info.field_name == "answer" else {"question", "choices"}
        unknown = [name for _, name, _, _ in Formatter().parse(value or "") if name is not None and name not in allowed]
        if unknown:
            raise ValueError(f"{{{unknown[0]}}} is nothing that a template can use here; it may use {', '.join(f'{{{a}}}' for a in sorted(allowed))}")
        return value

    def apply(self, record: Record) -> Iterable[Record]:
        questions = record.fields.get("questions")
        if record.data != "vqa" or not questions:
            yield record
            return
        shared = tuple(s for s in record.segments if s.turn < 0)
        turns = turn_segments(questions, self.question, self.answer, self.with_choices)
        yield replace(record, segments=shared + tuple(turns))
