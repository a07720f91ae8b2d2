"""Lettered options in every rotation, so that a model which likes a letter, or a place, gains nothing by it.

In: a question whose options stand in its words under letters and which is answered by letter: `A. cat B. dog C. cow`, `a square, b triangle`,
`(a) open (b) closed`. Out: the same question once for each rotation, its letters in their places and its options moved round, with what is to be
answered at each place. Whoever always says A is right in exactly one rotation of n. Where options are answered by their own words, or do not stand in
the question, there is one way to ask it and nothing to rotate.

The words are taken from the ids and put back into ids by the dataset's own tokenizer; a question that does not come back as it was is left alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainer.evaluate._questions import Question

_POST, _SEP = r"(?P<post>[^\w\n]{1,3})", r"(?P<sep>\W{1,4}?)"
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it is put once. `options` are what to answer, place by place; `order[j]` is the choice that stands at place j."""

    question: Question
    options: tuple[str, ...]
    order: tuple[int, ...]


def rotations(q: Question, tokenizer: Any) -> list[Asked]:
    """The question in every rotation of its lettered options, first as it stands; or as it stands alone."""
    n = len(q.choices)
    plain = [Asked(q, q.choices, tuple(range(n)))]
    heads = _heads(q)
    if heads is None or n < 2:
        return plain
    ids = q.ids[q.last :].tolist()
    text = tokenizer.decode(ids, skip_special_tokens=False)
    places = _places(q, text)
    if places is None or tokenizer.encode(text, add_special_tokens=False).ids != ids:
        return plain
    words = [text[a:b] for a, b in places]
    out = list(plain)
    for turn in range(1, n):
        order = tuple((j + turn) % n for j in range(n))
        made, at = "", 0
        for j, (a, b) in enumerate(places):
            made, at = made + text[at:a] + words[order[j]], b
        moved = np.array(tokenizer.encode(made + text[at:], add_special_tokens=False).ids, np.int32)
        options = tuple(head + (q.bare[order[j]] if tail else "") for j, (head, tail) in enumerate(heads))
        out.append(Asked(replace(q, ids=np.concatenate([q.ids[: q.last], moved]), answer_ids=q.answer_ids), options, order))
    return out


def _heads(q: Question) -> list[tuple[str, bool]] | None:
    """For each place: what its answer begins with, and whether the option's words follow. None where answers are no letters."""
    if all(_LETTER.fullmatch(c) for c in q.choices):
        return [(c, False) for c in q.choices]
    if len(q.bare) != len(q.choices) or not all(b and c.endswith(b) for b, c in zip(q.bare, q.choices, strict=True)):
        return None
    heads = [c[: -len(b)] for b, c in zip(q.bare, q.choices, strict=True)]
    return [(head, True) for head in heads] if all(_LETTER.fullmatch(head.strip()) for head in heads) else None


def _places(q: Question, text: str) -> list[tuple[int, int]] | None:
    """Where the options' words stand in the text, in order; None where they do not stand there under their letters."""
    marks = [m[1] for c in q.choices if (m := _LETTER.match(c))]
    if len(marks) < len(q.choices):
        return None
    if q.bare and q.bare != q.choices:
        return _found(text, marks, [re.escape(b) for b in q.bare], end="", once=True)
    for part in filter(None, (q.text, q.hint)):  # the options are known by their letters alone: they end where the question or its hint does
        at = text.rfind(part)
        if at >= 0 and (found := _found(part, marks, [r"[^\n]+?"] * len(marks), end=r"[?.!]*\s*$", once=False)):
            return [(at + a, at + b) for a, b in found]
    return None


def _found(text: str, marks: list[str], options: list[str], end: str, once: bool) -> list[tuple[int, int]] | None:
    """Spans of the options after their letters, the letters set apart from them and from one another always in the same way; the last such list."""
    for letters in (marks, [m.swapcase() for m in marks]) if once else (marks,):
        pattern = rf"(?<!\w){letters[0]}{_POST}(?P<o0>{options[0]})"
        for k in range(1, len(letters)):
            pattern += (_SEP if k == 1 else "(?P=sep)") + rf"{letters[k]}(?P=post)(?P<o{k}>{options[k]})"
        starts = [m.start() for m in re.finditer(rf"(?<!\w){letters[0]}(?=[^\w\n])", text)]
        for start in reversed(starts):
            if m := re.compile(pattern + end).match(text, start):
                return [m.span(f"o{k}") for k in range(len(letters))]
    return None
