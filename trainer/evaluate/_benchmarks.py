"""The 16 sets of Cambrian-1's evaluation (Tong et al., 2024), by name: how an answer is scored, what the score is the mean of, its group.

How the files lie and how a question is worded is said by recipes of the same names (`pipelines/recipes/benchmark_<name>.yaml`), since pictures are
curated and encoded like all others; docs/evaluations.md tells which files.

What a set's score is the weighted mean of (`units`):
    question   each question
    type       each question, types weighing alike (CV-Bench 2D: its two origins)
    pair       two questions that follow one another by number, right when both are (MMVP; the number stands as the question's type)
    image      MME: of each picture's questions half the mean and half whether all are right, its subtasks weighing alike: accuracy and accuracy+, so
               that the value is the official perception score over 2000
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from pipelines.format.chance import draw, group_hash
from pipelines.format.errors import InputError
from trainer.evaluate._questions import Question
from trainer.evaluate._scores import Rule

Units = Literal["question", "type", "pair", "image"]


class Kind(NamedTuple):
    """How a set is judged. `types`: only questions of these types; `rate`: the share that guessing gets where no choices are listed."""

    rule: Rule
    group: str = ""
    units: Units = "question"
    types: frozenset[str] = frozenset()
    rate: float | None = None


_PERCEPTION = frozenset(["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "ocr"])
SETS: dict[str, Kind] = {
    "mme": Kind("yes_no", "general", "image", _PERCEPTION, 0.5),
    "mmbench": Kind("letter", "general"),
    "seed": Kind("letter", "general", types=frozenset({"image"})),
    "gqa": Kind("exact", "general"),
    "scienceqa": Kind("letter", "knowledge"),
    "mmmu": Kind("letter", "knowledge"),
    "mathvista": Kind("number", "knowledge"),
    "ai2d": Kind("letter", "knowledge"),
    "chartqa": Kind("relaxed", "ocr_chart"),
    "ocrbench": Kind("contains", "ocr_chart"),
    "textvqa": Kind("textvqa", "ocr_chart"),
    "docvqa": Kind("anls", "ocr_chart"),
    "mmvp": Kind("letter", "vision", "pair"),
    "realworldqa": Kind("letter", "vision"),
    "cvbench_2d": Kind("letter", "vision", "type"),
    "cvbench_3d": Kind("letter", "vision"),
}


class Unit(NamedTuple):
    """What a set's score is the mean of: the questions (by place) that it is made of."""

    name: str
    type: str
    questions: tuple[int, ...]


def kept(kind: Kind, type: str) -> bool:
    """Whether questions of this type are asked."""
    return not kind.types or type.lower() in kind.types


def units_of(kind: Kind, keys: Sequence[tuple[str, str, int, str]], where: str) -> list[Unit]:
    """The units of questions told by (record, group, turn, type)."""
    by: dict[Any, list[int]] = defaultdict(list)
    for i, (id, group, turn, type) in enumerate(keys):
        if kind.units == "image":
            by[type, group].append(i)
        elif kind.units == "pair":
            by[(_number(type, where) + 1) // 2].append(i)
        else:
            by[id, turn].append(i)
    out = []
    for mine in by.values():
        id, group, turn, type = keys[mine[0]]
        name = {"image": f"{type}/{group}", "pair": f"pair {(_number(type, where) + 1) // 2}" if kind.units == "pair" else ""}
        out.append(Unit(name.get(kind.units) or f"{id}#{turn}", type, tuple(mine)))
    if kind.units == "pair" and (odd := [u.name for u in out if len(u.questions) != 2]):
        raise InputError("a pair of questions is not whole", where=where, found=odd[0], allowed="two questions a pair")
    return out


def _number(type: str, where: str) -> int:
    if not re.fullmatch(r"\d{1,9}", type):
        raise InputError("questions of this set are numbered in their type", where=where, found=type, next="curate it by the packaged recipe")
    return int(type)


def chosen(units: Sequence[Unit], limit: int | None) -> list[Unit]:
    """Units until `limit` questions are reached, in the order of a draw on their names alone."""
    ordered = sorted(units, key=lambda u: (draw(group_hash(u.name), 0, "benchmark"), u.name))
    if limit is None:
        return ordered
    sizes = np.cumsum([0, *(len(u.questions) for u in ordered)])[:-1]
    return [u for u, before in zip(ordered, sizes.tolist(), strict=True) if before < limit]


def values(kind: Kind, units: Sequence[Unit], scores: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """(value, weight) of each unit; NaN where a question of it has no score."""
    of: Callable[[np.ndarray], float] = {"image": lambda s: (s.mean() + s.prod()) / 2, "pair": lambda s: s.prod()}.get(kind.units, lambda s: s.mean())
    found = np.array([of(np.array([np.nan if (v := scores[i]) is None else float(v) for i in u.questions])) for u in units], np.float64)
    many = Counter(u.type for u in units)
    alike = kind.units in ("type", "image")
    return found, np.array([1 / many[u.type] if alike else 1.0 for u in units])


def guessed_by(kind: Kind, questions: Sequence[Question]) -> list[Question]:
    """The questions under the types that constant answers are chosen by: a number that pairs are found by is none, or each question would have its
    own answer as its constant."""
    return [replace(q, type="all") for q in questions] if kind.units == "pair" else list(questions)


def pieces(questions: Iterable[Question], total: int, most: int) -> Iterator[list[Question]]:
    """All questions in order in even pieces of at most `most`: a last one of one question would have nobody to exchange pictures with."""
    left, count = iter(questions), max(1, -(-total // most))
    for k in range(count):
        yield list(islice(left, total * (k + 1) // count - total * k // count))


def luck(kind: Kind, q: Question) -> float:
    """What guessing gets; NaN where nothing is offered to guess from."""
    return 1 / len(q.choices) if q.choices else kind.rate if kind.rate is not None else float("nan")
