"""Held-out questions of a plan: which are asked, and the controls that need no model.

One question per image as long as there are images, chosen by a draw on the record and turn alone: every arm, seed and machine asks the same
ones. Two controls are arithmetic on the questions: the best constant answer per type (chosen on these very questions, so generous), and the bag
of attributes, somebody who knows what is in the picture and guesses what belongs to what.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.format.chance import draw, group_hash, hash64
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.forgotten import NAMED_BY, forgotten, tombstones
from pipelines.format.record import Record
from trainer.evaluate._scores import EDGES, Rule, begun, normal, score


@dataclass(frozen=True, slots=True)
class Question:
    """One turn of one held-out record. `ids` and `answer_ids` are as stored; `places` are those of the images among the ids, all 0 where they
    stand in front; answers and choices have the form they are answered in; `bag` are candidate answers, None where the record names none. `bare`
    are the choices' own words, `last` is where the ids of the question's last piece of text begin, `votes` says how many gave each answer."""

    id: str
    group: str
    turn: int
    type: str
    text: str
    answers: tuple[str, ...]
    ids: np.ndarray = field(repr=False)
    answer_ids: np.ndarray = field(repr=False)
    images: tuple[np.ndarray, ...] = field(repr=False)
    places: tuple[int, ...] = ()
    choices: tuple[str, ...] = ()
    bag: tuple[str, ...] | None = None
    bare: tuple[str, ...] = ()
    hint: str = ""
    last: int = 0
    votes: tuple[int, ...] = ()

    def right(self, answer: str) -> bool:
        """Exact match with one of the answers, after `normal`."""
        return normal(answer) in {normal(a) for a in self.answers}

    @property
    def given(self) -> list[str]:
        """What people said, an entry each: by their votes, or ten times the one answer there is. InputError where that is not known."""
        if len(self.votes) == len(self.answers):
            return [a for a, n in zip(self.answers, self.votes, strict=True) for _ in range(n)]
        if len(self.answers) > 1:
            raise InputError("nothing says how many people gave each answer, and this score is made of it", where=f"{self.id}, turn {self.turn}",
                             allowed="fields.questions[].votes", next="curate the dataset again, or score by exact match")  # fmt: skip
        return list(self.answers) * 10

    def open(self, words: str) -> bool:
        """Whether an answer that begins so can still become right."""
        said = begun(words).rstrip("\ufffd")  # U+FFFD: bytes of a character that is not whole yet
        wanted = [normal(a) for a in self.answers]
        return any(w.startswith(said) or (said.startswith(w) and not said[len(w) :].strip(EDGES)) for w in wanted)


Place = tuple[Dataset, int, Record]  # a record, and the dataset and shard that it stands in


def held_out_records(plan: Any, source: str) -> Iterator[tuple[Dataset, int, Record]]:
    """Every held-out record of a source, once: (dataset, shard, record without payloads)."""
    if source not in plan.sources:
        raise InputError("the plan has no such source", found=source, allowed=", ".join(plan.sources))
    spans = {(s.dataset, s.shard, s.row): s for i in plan.held_out(source) for s in plan.row(i, "heldout").spans}
    for place in sorted(spans):
        yield plan.datasets[place[0]], place[1], plan.record(spans[place])


def held_out_questions(plan: Any, source: str, limit: int) -> list[Question]:
    """Up to `limit` held-out questions of a source."""
    return questions_of(held_out_records(plan, source), limit, chained=plan.rules(source).turns == "chained")


def questions_of(places: Iterable[Place], limit: int, chained: bool) -> list[Question]:
    """Up to `limit` questions, one per image before a second of any, in an order that depends on the records alone. A dialogue that is trained as a
    chain is asked as one: what was said before stands before the question."""
    found = []
    by_group: dict[str, list[tuple[int, str, int]]] = defaultdict(list)
    records = {}
    for dataset, shard, record in places:
        records[record.id] = (dataset, shard, record)
        for asked in record.fields.get("questions", []):
            turn = int(asked["turn"])
            by_group[record.group].append((int(draw(hash64(record.id), 0, "question", turn)), record.id, turn))
    for group, turns in by_group.items():
        for level, (_, id, turn) in enumerate(sorted(turns)):
            found.append((level, int(draw(group_hash(group), 0, "question")), id, turn))
    return [question_of(*records[id], turn, chained) for _, _, id, turn in sorted(found)[:limit]]


def dataset_records(dataset: Dataset) -> Iterator[Place]:
    """Every record of an encoded dataset that is not forgotten."""
    stones = tombstones(dataset)
    for i in range(len(dataset.shards)):
        gone = set() if stones is None else set(np.flatnonzero(forgotten(dataset.index(i, list(NAMED_BY)), stones)).tolist())
        yield from ((dataset, i, record) for row, record in enumerate(dataset.records(i)) if row not in gone)


def question_of(dataset: Dataset, shard: int, record: Record, turn: int, chained: bool = False) -> Question:
    """One turn of a record, its ids and latents read."""
    before = range(turn if chained and record.fields.get("dialogue") else 0)
    asked = next(q for q in record.fields["questions"] if int(q["turn"]) == turn)
    shown = asked.get("shown") or asked
    bag, read = asked.get("bag"), lambda s: np.asarray(dataset.array(shard, s))
    images, places, ids, last = [], [], [np.zeros(0, np.int32)], 0
    for s in record.segments:
        if s.kind == "latents" and (s.turn in (-1, turn) or s.turn in before):
            images.append(read(s).astype(np.float32))
            places.append(sum(map(len, ids)))
        elif s.kind == "tokens" and ((s.turn == turn and s.role == "context") or s.turn in before):
            last = sum(map(len, ids))
            ids.append(read(s).astype(np.int32))
    answer = [read(s).astype(np.int32) for s in record.segments if s.kind == "tokens" and s.turn == turn and s.role == "target"]
    return Question(
        id=record.id,
        group=record.group,
        turn=turn,
        type=str(asked.get("type") or "all"),
        text=str(asked.get("question", "")),
        answers=tuple(map(str, shown.get("answers", []))),
        ids=np.concatenate(ids),
        answer_ids=np.concatenate(answer or [np.zeros(0, np.int32)]),
        images=tuple(images),
        places=tuple(places),
        choices=tuple(map(str, shown.get("choices") or ())),
        bag=None if bag is None else tuple(map(str, bag)),
        bare=tuple(map(str, asked.get("choices") or ())),
        hint=str(asked.get("hint") or ""),
        last=last,
        votes=tuple(map(int, asked.get("votes") or ())),
    )


def shuffled_images(questions: Sequence[Question]) -> list[tuple[np.ndarray, ...] | None]:
    """For each question the images of another, never its own: a rotation of the questions in order of group, by the size of the largest group.

    None where there is nothing to exchange: when one group holds more than half of the questions, some would be given their own.
    """
    if not questions:
        return []
    order = sorted(range(len(questions)), key=lambda i: (draw(group_hash(questions[i].group), 0, "shuffled"), questions[i].group, i))
    step = max(Counter(q.group for q in questions).values())
    given: list[tuple[np.ndarray, ...] | None] = [None] * len(questions)
    for place, i in enumerate(order):
        other = questions[order[(place + step) % len(order)]]
        given[i] = other.images if other.group != questions[i].group else None
    return given


def constant_answers(questions: Sequence[Question], rule: Rule = "exact") -> dict[str, str]:
    """Per type the one answer that scores most on these questions, among those that are an answer of some; ties go to the first in the alphabet."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for q in questions:
        counts[q.type].update({a: score(rule, a, q) for a in sorted({normal(a) for a in q.answers})})
    return {kind: min(c, key=lambda a: (-c[a], a)) for kind, c in counts.items() if c}


def attribute_scores(questions: Sequence[Question]) -> list[float | None]:
    """The expected score of guessing among each question's bag; None where there is no bag."""
    return [None if not q.bag else sum(q.right(b) for b in q.bag) / len(q.bag) for q in questions]


def guessing_scores(questions: Sequence[Question]) -> list[float]:
    """Uniform guessing: among the choices where there are some, else among the answers that occur for the type."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for q in questions:
        kinds[q.type].update(map(normal, q.answers[:1]))
    return [1 / len(q.choices) if q.choices else 1 / max(1, len(kinds[q.type])) for q in questions]
