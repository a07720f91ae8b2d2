"""One question of a table as a mapping: the words asked, the answers accepted, the choices offered, and which of them is right.

What comes in: a row, and which columns say what. What goes out: {question, answers, choices?, choice?, hint?, type?}; `choice` is the place of the
right one, `answers[0]` is its text. People write the right choice as its text, its letter, or its place from 0 or 1, and no row says which: the
recipe does (`answer_is`). Whatever does not fit is a `Reject`.
"""

from __future__ import annotations

import ast
import html
import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.format.errors import Reject
from pipelines.pictures import sound
from pipelines.table import cell
from pipelines.turns import ranked, votes

AnswerIs = Literal["text", "letter", "index0", "index1"]
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:)]?")
MAX_LITERAL = 1 << 16  # characters of a list that is written as text


@dataclass(frozen=True, slots=True)
class Limits:
    """What a text may be. `unescape` turns HTML's `&amp;` and `&#39;` into what they mean; only whole ones, with their semicolon."""

    max_turns: int = 200
    max_text: int = 100_000
    unescape: bool = True

    def plain(self, text: str) -> str:
        """A text without HTML entities. One that stands for half a surrogate pair or nothing at all becomes U+FFFD, as the standard says."""
        return _ENTITY.sub(lambda m: html.unescape(m[0]), text) if self.unescape and "&" in text else text

    def short(self, text: str) -> str:
        """The text itself, when UTF-8 can hold it and it is not too long."""
        return sound(text, self.max_text)

    def tidy(self, text: str) -> str:
        """A text as it is kept: sound, short, without entities and outer white space."""
        text = sound(text).strip()
        if self.unescape and "&" in text:
            return self.short(self.plain(text).strip())
        return text if len(text) <= self.max_text else self.short(text)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns say what. `choices` is one column with a list, or one column for each choice; `type` a column, or a word written `=word`."""

    question: str = "question"
    answer: str = "answer"
    answers: str | None = None
    answer_is: AnswerIs = "text"
    choices: str | tuple[str, ...] | None = None
    choice_list: tuple[str, ...] = ()
    hint: str | None = None
    type: str | None = None

    def names(self) -> list[str]:
        """The columns that are read."""
        listed = [self.choices] if isinstance(self.choices, str) else list(self.choices or ())
        typed = self.type if self.type and not self.type.startswith("=") else None
        return [c for c in dict.fromkeys((self.question, self.answer, self.answers, *listed, self.hint, typed)) if c]

    def read(self, row: Any, limits: Limits) -> dict[str, Any]:
        """The question of a row."""
        first = cell(row, self.answer)
        asked = limits.tidy(_word(cell(row, self.question), "question"))
        if not asked:
            raise Reject("empty", "an answer without a question")
        choices, places = self._offered(row, limits)
        further = _list(cell(row, self.answers)) if self.answers else []
        if not choices:
            first = _accepted(first)
        chosen, given = None, first if isinstance(first, list) else [first]
        if self.answer_is != "text" and choices:
            named = _place(first, self.answer_is, row, self.choices)
            chosen = None if named is None else places.get(named)
            if chosen is None:
                raise Reject("answer_not_in_choices", f"answer {str(first)[:80]!r} is no {self.answer_is} of {len(choices)} choices")
            given = [choices[chosen]]
        best = None if isinstance(first, list) else given[0]
        words = [limits.tidy(_word(a, "answer")) for a in (*given, *further) if _there(a)]
        answers = ranked(words, first=limits.tidy(_word(best, "answer")) if _there(best) else None)
        if not answers:
            raise Reject("empty", "a question without an answer")
        people = words[1:] if _there(best) else words
        out: dict[str, Any] = {"question": asked, "answers": answers, **votes(people, answers)}
        if choices:
            out |= {"choices": choices, "choice": _chosen(answers[0], choices) if chosen is None else chosen}
        if self.hint and (hint := _said(cell(row, self.hint), limits)):
            out["hint"] = hint
        if self.type and (kind := self.type[1:] if self.type.startswith("=") else _said(cell(row, self.type), limits)):
            out["type"] = kind
        return out

    def _offered(self, row: Any, limits: Limits) -> tuple[list[str], dict[int, int]]:
        """The choices that hold something, and for each place as the row counts them the place among these."""
        if isinstance(self.choices, tuple):
            raw = [cell(row, c) for c in self.choices]
        else:
            raw = _list(cell(row, self.choices)) if self.choices else list(self.choice_list)
        kept = [(i, text) for i, c in enumerate(raw) if (text := _said(c, limits))]
        return [text for _, text in kept], {i: k for k, (i, _) in enumerate(kept)}


def _place(answer: Any, how: AnswerIs, row: Any, choices: str | Sequence[str] | None) -> int | None:
    """The place, from 0, of the choice that an answer names."""
    text = _said(answer, Limits())
    if how == "letter":
        if not (m := _LETTER.fullmatch(text)):
            return None
        named = _labels(row, choices)
        return named.index(m[1].upper()) if m[1].upper() in named else None if named else ord(m[1].upper()) - ord("A")
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) - (how == "index1") if number.is_integer() and abs(number) < 1000 else None


def _labels(row: Any, choices: str | Sequence[str] | None) -> list[str]:
    """The letters that choices carry themselves: as keys of a mapping, or as {label: […], text: […]}."""
    found = cell(row, choices) if isinstance(choices, str) else None
    if isinstance(found, dict):
        return [str(k).strip().upper() for k in (found["label"] if isinstance(found.get("label"), list) else found)]
    return []


def _chosen(answer: str, choices: list[str]) -> int:
    alike = [" ".join(c.casefold().split()) for c in choices]
    wanted = " ".join(answer.casefold().split())
    if wanted not in alike:
        raise Reject("answer_not_in_choices", f"answer {answer[:80]!r}, choices {', '.join(choices)[:120]!r}")
    return alike.index(wanted)


def _list(value: Any) -> list[Any]:
    """A cell that holds a list, in whatever form: a list, a mapping of letters, {label, text}, or a list written as text."""
    if isinstance(value, dict):
        return list(value["text"]) if isinstance(value.get("text"), list) else list(value.values())
    if isinstance(value, str) and value[:1] == "[" and value.rstrip()[-1:] == "]" and len(value) <= MAX_LITERAL:
        for reader in (json.loads, ast.literal_eval):  # Python's own spelling is what a table of strings is left with
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a backslash that Python would not have written
                    found = reader(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                continue
            if isinstance(found, list):
                return found
    return value if isinstance(value, list) else [value] if _there(value) else []


def _accepted(answer: Any) -> Any:
    """Several accepted answers that a table of strings holds as one text (`['24/7', '3.429']`, as MMMU has them), as a list. A list of anything but
    words is an answer that looks so (`[0, 1]`, an interval) and stays as it is."""
    found = _list(answer) if isinstance(answer, str) else []
    return found if found and found != [answer] and all(isinstance(a, str) and a.strip() for a in found) else answer


def _there(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _word(value: Any, what: str) -> str:
    """A number or a truth value is a word too; a list or a mapping is none."""
    if isinstance(value, dict) and "answer" in value:  # VQA v2: one mapping for each of the ten people
        value = value["answer"]
    if not _there(value):
        return ""
    if isinstance(value, bool | int | float):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if not isinstance(value, str):
        raise Reject("unreadable", f"the {what} is no text: {str(value)[:80]!r}")
    return value


def _said(value: Any, limits: Limits) -> str:
    return limits.tidy(_word(value, "cell"))
