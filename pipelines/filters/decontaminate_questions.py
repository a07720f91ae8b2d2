"""Training questions that an evaluation set asks: they leave their record, and a record that has no other leaves as `decontaminate_questions.<set>`.

A question is a leak when, of words of letters and digits in lower case, it
    has `min_words` or more and is the same as one of the set, or
    shares `n_grams` words in a row with one of the set, or
    is the same as one of the set, however short, and is asked about a picture that the set asks it about (`pipelines/sketches.py`).

Short questions come again by themselves: of half the questions of VQA-RAD, 28 in 381 are asked about images of the other half too ("Where is the
lesion?"), of ten words or more none (docs/decontamination.md). With their picture they are the test itself. Where pictures of the set are not wanted
in training at all, `decontaminate_images` drops them with everything that is asked.

The other questions of a record stay, numbered anew; what left is counted in `fields.questions_leaked`. Of a dialogue, where later turns lean on
earlier ones, nothing stays. Records without questions pass. Each worker reads the sets once: 16 bytes a run of words, and sketches of the pictures
where `with_picture` is on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from hashlib import blake2b, sha256
from typing import Any

from pydantic import Field

from pipelines.across.evaluation_pictures import Hit, Known, sketch_of
from pipelines.format.errors import InputError
from pipelines.format.record import Record
from pipelines.reference_questions import ReferenceQuestions, question_files, question_tables, reference_questions, words_asked
from pipelines.stage import Filter

_GEOMETRY = ("as_is", "center_crop", "border")
_recent: list[tuple[Record, DecontaminateQuestions, dict[int, str]]] = []  # `reason` and `kept` ask about the same record


class DecontaminateQuestions(Filter):
    """`against`: name → set of questions. `with_picture`: short questions, too, on pictures that the set asks them about."""

    against: dict[str, ReferenceQuestions] = Field(min_length=1)
    min_words: int = Field(10, ge=1)
    n_grams: int = Field(13, ge=2)
    with_picture: bool = True

    def files(self) -> list[str]:
        return list(dict.fromkeys(path for reference in self.against.values() for path in question_files(reference)))

    def reason(self, record: Record) -> str | None:
        leaks = self._leaks(record)
        whole = bool(leaks) and (bool(record.fields.get("dialogue")) or len(leaks) == len(record.fields["questions"]))
        return f"decontaminate_questions.{leaks[min(leaks)]}" if whole else None

    def kept(self, record: Record) -> Record:
        leaks = self._leaks(record)
        if not leaks:
            return record
        stay = [q for i, q in enumerate(record.fields["questions"]) if i not in leaks]
        number = {q["turn"]: i for i, q in enumerate(stay)}
        here = (s for s in record.segments if s.turn < 0 or s.turn in number)  # images and what else all turns share have turn -1
        segments = tuple(replace(s, turn=number[s.turn]) if s.turn >= 0 else s for s in here)
        questions = [{**q, "turn": i} for i, q in enumerate(stay)]
        counted = dict(sorted(Counter(leaks.values()).items()))
        return replace(record, segments=segments, fields={**record.fields, "questions": questions, "questions_leaked": counted})

    def _leaks(self, record: Record) -> dict[int, str]:
        """Place of each leaked question → the first set that asks it."""
        questions = record.fields.get("questions")
        if record.data != "vqa" or not questions:
            return {}
        if _recent and _recent[0][0] is record and _recent[0][1] is self:
            return _recent[0][2]
        texts = [words_asked(str(q["question"])) for q in questions]
        found: dict[int, str] = {}
        for name, one in self._sets.items():
            for i in one.leaked(record, texts, self):
                found.setdefault(i, name)
        _recent[:] = [(record, self, found)]
        return found

    @cached_property
    def _sets(self) -> dict[str, _Asked]:
        """Looked up once a part: in an object store every look is a request."""
        out = {}
        for name, reference in self.against.items():
            tags = tuple((f.path, f.bytes, f.tag) for f in question_tables(reference))
            out[name] = _asked(reference, self.n_grams, self.with_picture, name, tags)
        return out


class _Asked:
    """One set: its questions as digests, their runs of words, and their pictures."""

    def __init__(self, reference: ReferenceQuestions, n_grams: int, with_picture: bool) -> None:
        self.questions: dict[bytes, set[str]] = {}
        self.runs: set[bytes] = set()
        pictures: dict[str, Any] = {}
        for asked in reference_questions(reference):
            words = words_asked(asked.question)
            images = self.questions.setdefault(_digest(words), set())
            if asked.image is not None and with_picture:
                images.add(asked.image)
                pictures.setdefault(asked.image, asked.picture)
            self.runs.update(_runs(words, n_grams))
        self.pictures = Known(((name, read()) for name, read in pictures.items()), _GEOMETRY) if pictures else None

    def leaked(self, record: Record, texts: Sequence[list[str]], rule: DecontaminateQuestions) -> list[int]:
        """The places of the questions that this set asks."""
        out, shown = [], None
        for i, words in enumerate(texts):
            images = self.questions.get(_digest(words))
            if any(run in self.runs for run in _runs(words, rule.n_grams)) or (images is not None and len(words) >= rule.min_words):
                out.append(i)
            elif images and self.pictures is not None:
                shown = self._shown(record) if shown is None else shown
                if any(self.pictures.alias[image] in shown for image in images):
                    out.append(i)
        return out

    def _shown(self, record: Record) -> set[str]:
        assert self.pictures is not None
        out: set[str] = set()
        for s in record.segments:
            if s.kind == "image" and s.payload is not None:
                hits: list[Hit] = self.pictures.by_bytes(s.payload, sha256(s.payload).digest())
                pixels, sketches = (None, []) if hits else sketch_of(s.payload)
                out |= {h.image for h in (self.pictures.by_look(pixels, sketches[0]) if pixels is not None else hits)}
        return out


def _digest(words: Sequence[str]) -> bytes:
    return blake2b(" ".join(words).encode(), digest_size=16).digest()


def _runs(words: list[str], n: int) -> list[bytes]:
    return [_digest(words[i : i + n]) for i in range(len(words) - n + 1)]


@lru_cache(maxsize=8)
def _asked(reference: ReferenceQuestions, n_grams: int, with_picture: bool, name: str, tags: tuple[Any, ...]) -> _Asked:
    """Read once in a process as long as its files do not change."""
    found = _Asked(reference, n_grams, with_picture)
    if not found.questions:
        raise InputError("this set has no questions", where=f"against.{name}", found=reference.path)
    return found
