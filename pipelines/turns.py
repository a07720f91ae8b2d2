"""Questions about pictures, as segments: the one place that knows the convention.

What comes in: images, and questions as plain mappings {question, answers, choices?, choice?, hint?, type?, bag?, image_at?}. What goes out: a record
of images (turn -1, which all turns share), then for each question a Text(context) that ends with an answer mark and a Text(target), the first of
its answers; all one atom. Pictures that stand inside a question (`image_at`, places in its bare words) have its turn and part its text.
`fields.questions` keeps the bare words for templates and evaluations, each with its turn; `fields.dialogue` says that later turns lean on
earlier ones.
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
from pipelines.wording import PLAIN, Wording


def turn_segments(questions: Iterable[dict[str, Any]], pictures: Sequence[Segment], wording: Wording, dialogue: bool = False) -> list[Segment]:
    """The segments of each turn. `pictures` are those that stand inside questions, each with its turn."""
    out: list[Segment] = []
    for i, q in enumerate(questions):
        turn = q["turn"]
        own = [p for p in pictures if p.turn == turn]
        places = [at for at in q.get("image_at") or () if isinstance(at, int)][: len(own)]
        out += own[len(places) :]  # pictures whose places nobody knows stand before their question
        inside = iter(own)
        for piece in wording.asked(q, places, follows=dialogue and i > 0):
            out.append(next(inside) if piece is None else Text(piece, role="context", atom=0, turn=turn))
        out.append(Text(wording.answered(q), role="target", atom=0, turn=turn))
    return out


def vqa_record(source: str, item: Item, questions: Sequence[dict[str, Any]], max_pixels: int, **rest: Any) -> Record:
    """A record of an item's images and numbered questions. Pictures that questions place inside themselves are the item's last. Raises `Reject`."""
    numbered = [{**q, "turn": i} for i, q in enumerate(questions)]
    turns = [q["turn"] for q in numbered for _ in q.get("image_at") or ()]
    turns = [-1] * (len(item.images) - len(turns)) + turns
    if len(turns) != len(item.images):
        raise Reject("image_marks", f"{len(turns)} places for {len(item.images)} images")
    seen: dict[int, Segment] = {}  # a picture shown twice is looked at once
    pictures = []
    for (_, data), turn in zip(item.images, turns, strict=True):
        if id(data) not in seen:
            seen[id(data)] = picture(data, role="context", max_pixels=max_pixels)
        pictures.append(seen[id(data)] if turn < 0 else replace(seen[id(data)], turn=turn))
    fields = {**rest.pop("fields", {}), "questions": numbered}
    group = group_of([data for _, data in item.images]) if item.images else None
    shared, inside = [p for p in pictures if p.turn < 0], [p for p in pictures if p.turn >= 0]
    said = turn_segments(numbered, inside, PLAIN, bool(fields.get("dialogue")))
    return Record.make(source, item.origin, "vqa", (*shared, *said), group=group, fields=fields, **rest)


def answered(
    source: str,
    item: Item,
    questions: Sequence[tuple[str, Callable[[], dict[str, Any]]]],
    max_pixels: int,
    max_turns: int = 200,
    repeats: bool = True,
    **rest: Any,
) -> Iterator[Record | Rejected]:
    """Records of the questions, each (origin, how to read it), that can be read, and one reject for each that cannot. More than `max_turns` questions
    on one image go on in a further record (`~1`, `~2`, …), which shares its bytes. Without `repeats`, a question that was asked about
    the image before is a reject: `duplicate`."""
    good, bad = [], []
    before: dict[Any, str] = {}
    for origin, read in questions:
        try:
            q = read()
            asked = (" ".join(q["question"].casefold().split()), tuple(q.get("choices") or ()))
            if not repeats and asked in before:
                same = "with the same answer" if before[asked] == q["answers"][0] else f"then answered {before[asked][:80]!r}"
                raise Reject("duplicate", f"asked before about this image, {same}")
            before[asked] = q["answers"][0]
            good.append(q)
        except Reject as reject:
            bad.append(Rejected(origin, reject.reason, reject.detail))
    for k, at in enumerate(range(0, len(good), max_turns)):
        one = item if k == 0 else replace(item, origin=f"{item.origin}~{k}")
        try:
            yield vqa_record(source, one, good[at : at + max_turns], max_pixels, **rest)
        except Reject as reject:
            yield Rejected(item.origin, reject.reason, reject.detail)
            break
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


def votes(given: Sequence[str], answers: Sequence[str]) -> dict[str, list[int]]:
    """{votes: how many people gave each answer}, where more than one person was asked; else nothing. Soft scores (VQA v2's) are made of it."""
    counted = Counter(a for a in given if a)
    return {"votes": [counted[a] for a in answers]} if counted.total() > 1 else {}
