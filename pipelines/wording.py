"""How a question is put into words: patterns for what is asked, how choices and hints are listed, and what form the answer takes.

What comes in: a question as `turns.py` keeps it, bare. What goes out: the pieces of its text between the pictures that stand inside it, and the
text of the answer. Patterns are Python's format strings with named fields and nothing else: no attributes, no indexes, so that a recipe cannot
reach into anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter, ascii_uppercase
from typing import Any

ASKING = ("question", "choices", "hint", "instruction", "system")
ANSWERING = ("answer", "letter")
CHOICE = ("letter", "choice")


@dataclass(frozen=True, slots=True)
class Wording:
    """`question` uses {question}, {choices}, {hint}, {instruction} and {system}; `with_choices` and `answer_with_choices` take the place of
    `question` and `answer` where there are choices; `hint` is what {hint} becomes where there is one, else nothing. Without `choice`, choices read
    `a, b or c`; with it each is put by that pattern ({letter}, {choice}), joined by `between`. {instruction} is `instruction_for_choices`
    where there are choices, else `instruction` where the answer has at most `short` words. `follows` comes before every later question of
    a dialogue, and `system` is only said before the first."""

    question: str = "Question: {question} Answer:"
    with_choices: str | None = None
    answer: str = " {answer}"
    answer_with_choices: str | None = None
    hint: str = "{hint}\n"
    choice: str | None = None
    between: str = "\n"
    instruction: str = ""
    instruction_for_choices: str = ""
    short: int = 4
    follows: str = "\n"
    system: str = ""

    def asked(self, q: dict[str, Any], places: Sequence[int] = (), follows: bool = False) -> list[str | None]:
        """The pieces of the question's text; None stands for a picture. `places` are those of its pictures in the bare question."""
        choices = [str(c) for c in q.get("choices") or ()]
        hint = q.get("hint")
        pattern = self.with_choices if self.with_choices is not None and choices else self.question
        words = {
            "choices": self.choices(choices),
            "hint": filled(self.hint, {"hint": str(hint)}) if hint else "",
            "instruction": self._instruction(q, bool(choices)),
            "system": "" if follows else self.system,
        }
        out: list[str | None] = [self.follows if follows else ""]
        shown = False
        for text, name in _parts(pattern):
            _add(out, text)
            if name == "question":
                bare, at = str(q["question"]), 0
                for place in () if shown else places:
                    _add(out, bare[at:place])
                    out.append(None)
                    at = max(at, place)
                _add(out, bare[at:])
                shown = True
            elif name is not None:
                _add(out, words[name])
        if places and not shown:  # a pattern that does not repeat the question still shows its pictures
            out[:0] = [None] * len(places)
        return [piece for piece in out if piece != ""]

    def answered(self, q: dict[str, Any]) -> str:
        """The text of the answer."""
        return self._answer(q, str(q["answers"][0]), q.get("choice"))

    def shown(self, q: dict[str, Any]) -> dict[str, list[str]] | None:
        """Accepted answers and choices in the form they are answered in; None where that is the answer itself."""
        choices = [str(c) for c in q.get("choices") or ()]
        pattern = self._pattern(bool(choices))
        if pattern.strip() == "{answer}":
            return None
        letters = any(name == "letter" for _, name in _parts(pattern))
        offered = [self._answer(q, c, i).strip() for i, c in enumerate(choices)]
        answers = [str(a) for a in q["answers"]]
        right = [offered[choices.index(a)] if a in choices else self._answer(q, a, None).strip() for a in answers if a in choices or not letters]
        if isinstance(q.get("choice"), int) and choices:
            right = [offered[q["choice"]], *right]
        return {"answers": list(dict.fromkeys(right)), "choices": offered}

    def choices(self, choices: Sequence[str]) -> str:
        """What {choices} becomes."""
        if self.choice is None:
            return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1] if choices else "")))
        return self.between.join(filled(self.choice, {"letter": letter(i), "choice": c}) for i, c in enumerate(choices))

    def _pattern(self, choices: bool) -> str:
        return self.answer_with_choices if self.answer_with_choices is not None and choices else self.answer

    def _answer(self, q: dict[str, Any], answer: str, choice: Any) -> str:
        choices = [str(c) for c in q.get("choices") or ()]
        pattern = self._pattern(bool(choices))
        if not isinstance(choice, int):
            choice = choices.index(answer) if answer in choices else None
        return filled(pattern, {"answer": answer, "letter": answer if choice is None else letter(choice)})

    def _instruction(self, q: dict[str, Any], choices: bool) -> str:
        if choices:
            return self.instruction_for_choices
        return self.instruction if len(str(q["answers"][0]).split()) <= self.short else ""


PLAIN = Wording()


def letter(i: int) -> str:
    """A, B, …, Z, AA, AB, …"""
    return (letter(i // 26 - 1) if i >= 26 else "") + ascii_uppercase[i % 26]


def filled(pattern: str, words: dict[str, str]) -> str:
    """A pattern with its fields filled in. Unlike `str.format`, values are never looked into."""
    return "".join(text + (words[name] if name is not None else "") for text, name in _parts(pattern))


def problem(pattern: str, allowed: Sequence[str]) -> str | None:
    """What is wrong with a pattern, in words."""
    try:
        found = list(Formatter().parse(pattern))
    except ValueError as error:
        return str(error)
    for _, name, form, conversion in found:
        if name is not None and (name not in allowed or form or conversion):
            return f"{{{name}}} is nothing that a template can use here; it may use {', '.join(f'{{{a}}}' for a in allowed)}"
    return None


@lru_cache(maxsize=64)
def _parts(pattern: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((text, name) for text, name, _, _ in Formatter().parse(pattern))


def _add(out: list[str | None], text: str) -> None:
    """Text goes on with the piece before it, up to the next picture."""
    if out and out[-1] is not None:
        out[-1] += text
    else:
        out.append(text)
