"""Questions about pictures, as segments: the one place that knows the convention.

What comes in: images, and questions as plain mappings {question, answers, choices?, type?, bag?}. What goes out: a record of images (turn -1, which
all turns share), then for each question a Text(context) that ends with an answer mark and a Text(target), the first of its answers; all
one atom. `fields.questions` keeps the bare words for templates and evaluations, each with its turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pipelines.format.record import Record, Segment, Text

QUESTION = "Question: {question} Answer:"
ANSWER = " {answer}"


def turn_segments(
    questions: Iterable[dict[str, Any]], question: str = QUESTION, answer: str = ANSWER, with_choices: str | None = None
) -> list[Segment]:
    """Question and answer segments of each turn, by template."""
    out = []
    for q in questions:
        choices = [str(c) for c in q.get("choices") or ()]
        pattern = with_choices if with_choices and choices else question
        asked = pattern.format(question=q["question"], choices=_listed(choices))
        out.append(Text(asked, role="context", atom=0, turn=q["turn"]))
        out.append(Text(answer.format(answer=q["answers"][0]), role="target", atom=0, turn=q["turn"]))
    return out


def vqa_record(
    source: str, origin: str, pictures: Sequence[Segment], questions: Sequence[dict[str, Any]], group: str, *, dialogue: bool = False, **rest: Any
) -> Record:
    """A VQA record. `questions` without turns are numbered; `dialogue` says that later questions lean on earlier ones."""
    numbered = [{**q, "turn": i} for i, q in enumerate(questions)]
    fields = {**rest.pop("fields", {}), "questions": numbered, **({"dialogue": True} if dialogue else {})}
    return Record.make(source, origin, "vqa", (*pictures, *turn_segments(numbered)), group=group, fields=fields, **rest)


def _listed(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1] if words else "")))
