"""Questions about pictures, as segments: the one place that knows the convention.

What comes in: images, and questions as plain mappings {question, answers, choices?, type?, bag?}. What goes out: a record of images (turn -1,
which all turns share), then for each question a Text(context) that ends with an answer mark and a Text(target), the first of its answers; all
one atom. `fields.questions` keeps the bare words for templates and evaluations, each with its turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipelines.format.errors import Reject
from pipelines.format.record import Record, Segment, Text
from pipelines.image_rows import Item
from pipelines.pictures import group_of, picture
from pipelines.stage import Rejected

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


def vqa_record(source: str, item: Item, questions: Sequence[dict[str, Any]], max_pixels: int, **rest: Any) -> Record:
    """A record of an item's images and numbered questions; `fields.dialogue` says that later ones lean on earlier ones. Raises `Reject`."""
    pictures = [picture(data, role="context", max_pixels=max_pixels) for _, data in item.images]
    numbered = [{**q, "turn": i} for i, q in enumerate(questions)]
    fields = {**rest.pop("fields", {}), "questions": numbered}
    group = group_of([data for _, data in item.images])
    return Record.make(source, item.origin, "vqa", (*pictures, *turn_segments(numbered)), group=group, fields=fields, **rest)


def answered(
    source: str, item: Item, questions: Sequence[tuple[str, Callable[[], dict[str, Any]]]], max_pixels: int, **rest: Any
) -> Iterator[Record | Rejected]:
    """One record of the questions, each (origin, how to read it), that can be read, and one reject for each that cannot."""
    good, bad = [], []
    for origin, read in questions:
        try:
            good.append(read())
        except Reject as reject:
            bad.append(Rejected(origin, reject.reason, reject.detail))
    if good:
        try:
            yield vqa_record(source, item, good, max_pixels, **rest)
        except Reject as reject:
            yield Rejected(item.origin, reject.reason, reject.detail)
    yield from bad


def without_turns(record: Record, turns: Collection[int]) -> Record | None:
    """The record without these turns: their questions, their segments and the images that only they show; None when no question is left.

    Turns that stay keep their numbers and the record its id. In a dialogue what follows a dropped turn leans on it, and goes with it. Turns
    that the record does not have change nothing."""
    questions = list(record.fields.get("questions") or ())
    there = {s.turn for s in record.segments if s.turn >= 0} | {int(q["turn"]) for q in questions}
    gone = there & set(turns)
    if not gone:
        return record
    if record.fields.get("dialogue"):
        gone = {t for t in there if t >= min(gone)}
    kept = [q for q in questions if int(q["turn"]) not in gone]
    segments = tuple(s for s in record.segments if s.turn not in gone)
    if not any(s.turn >= 0 and s.role == "target" for s in segments):
        return None
    fields = {**record.fields, "questions": kept} if questions else dict(record.fields)
    if len(kept) < 2:
        fields.pop("dialogue", None)
    return replace(record, segments=segments, fields=fields)


def ranked(given: Sequence[str], first: str | None = None) -> list[str]:
    """Distinct answers, `first` before all others, then by how many gave them, then by who came first. Empty ones are dropped."""
    counted = Counter(a for a in given if a)
    by_count = sorted(counted, key=lambda a: -counted[a])
    return list(dict.fromkeys([*([first] if first else []), *by_count]))


def _listed(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1] if words else "")))
