"""How right an answer is: one function a rule, each from what was said and the question to a number in [0, 1].

    exact     equal to one of the answers: lower case, single spaces, outer punctuation off
    vqav2     VQA v2's soft accuracy over what ten people said (_vqav2.py)
    textvqa   the same accuracy, answers normalised as TextVQA's evaluator does, always (_vqav2.py)
    anls      DocVQA: 1 - normalised edit distance to the nearest answer, below 0.5 nothing (Biten et al., ICCV 2019): of the whole answer, so where
              it is cut must not depend on the true one
    relaxed   ChartQA: a number within 5 % of the right one, else the same words (Masry et al., ACL Findings 2022)
    contains  OCRBench: one of the answers stands in what was said; of formulas without regard to spaces (Liu et al., 2023)
    letter    multiple choice: the right letter, or the right option's words
    yes_no    MME: the first word is the answer
    number    MathVista: the right option, or the right number at the answer's own precision, else the same words
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from trainer.evaluate._vqav2 import soft_accuracy, text_accuracy

if TYPE_CHECKING:
    from trainer.evaluate._questions import Question

Rule = Literal["exact", "vqav2", "textvqa", "anls", "relaxed", "contains", "letter", "yes_no", "number"]
EDGES = " .,;:!?\"'"
_FRONT = re.compile(rf"^(?:(?!\.\d)[{re.escape(EDGES)}])+")
FORMULAS = "handwritten mathematical expression recognition"
_LETTER = re.compile(r"\W{0,3}([A-Za-z])(?:[.:),].*|)", re.S)  # `B`, `(B)`, `B. blue`; not `a dog`


def normal(answer: str) -> str:
    """Lower case, single spaces, no punctuation at either end: what exact match compares. The full stop of `.5` is none."""
    return begun(answer).rstrip(EDGES)


def begun(answer: str) -> str:
    """`normal` of an answer that may go on: its end is left as it is."""
    return _FRONT.sub("", re.sub(r"\s+", " ", answer.lower()))


def score(rule: Rule, said: str, q: Question) -> float:
    """How right `said` is, in [0, 1]."""
    match rule:
        case "exact":
            return float(normal(said) in {normal(a) for a in q.answers})
        case "vqav2":
            return soft_accuracy(said, q.given)
        case "textvqa":
            return text_accuracy(said, q.given)
        case "anls":
            return max((_anls(said, a) for a in q.answers), default=0.0)
        case "relaxed":
            return float(any(_relaxed(said, a) for a in q.answers))
        case "contains":
            return float(any(_contains(said, a, q.type.lower() == FORMULAS) for a in q.answers))
        case "letter":
            return float(_chosen(said, q))
        case "yes_no":
            return float(bool(normal(said)) and normal(said).split()[0].strip(EDGES) in {normal(a) for a in q.answers})
        case "number":
            return float(_chosen(said, q)) if q.choices else float(any(_same_number(said, a) for a in q.answers))


def _chosen(said: str, q: Question) -> bool:
    """Whether what was said names the right option: as it is answered, by its words, or by its letter."""
    wanted = {normal(a) for a in q.answers}
    if normal(said) in wanted:
        return True
    words = [normal(c) for c in q.bare]
    if normal(said) in words:
        k = words.index(normal(said))
        return k < len(q.choices) and normal(q.choices[k]) in wanted
    found = _LETTER.fullmatch(said.strip())
    right = {m[1].lower() for a in q.answers if (m := _LETTER.fullmatch(a.strip()))}
    return found is not None and found[1].lower() in right and _lettered(q)


def _lettered(q: Question) -> bool:
    """Whether answers are letters, alone or before an option's words."""
    return all(_LETTER.fullmatch(text.strip()) for text in (q.choices or q.answers))


def hopeless(said: str, answers: Sequence[str]) -> bool:
    """Whether an answer that begins so scores nothing by ANLS however it goes on: it is more than twice as long as any right one, and each character
    too many is one to delete."""
    return len(_plain(said)) > 2 * max((len(_plain(a)) for a in answers), default=0)


def _plain(text: str) -> str:
    return " ".join(text.strip().lower().split())


def _anls(said: str, answer: str) -> float:
    a, b = _plain(said), _plain(answer)
    longest = max(len(a), len(b))
    found = 1 - distance(a, b) / longest if longest else 0.0
    return found if found >= 0.5 else 0.0


def distance(a: str, b: str) -> int:
    """Levenshtein's: the fewest insertions, deletions and replacements of characters."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def _relaxed(said: str, answer: str) -> bool:
    a, b = _figure(said), _figure(answer)
    if a is not None and b:
        return abs(a - b) / abs(b) <= 0.05
    return said.strip().lower() == answer.strip().lower()


def _figure(text: str) -> float | None:
    """A finite number, where per cent are hundredths."""
    text = text.strip()
    try:
        found = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _contains(said: str, answer: str, formula: bool) -> bool:
    if formula:
        said, answer = ("".join(t.split()) for t in (said, answer))
    else:
        said, answer = (t.strip().lower().replace("\n", " ") for t in (said, answer))
    return bool(answer) and answer in said


def _same_number(said: str, answer: str) -> bool:
    a, b = _figure(said), _figure(answer)
    if a is None or b is None:
        return normal(said) == normal(answer)
    places = len(answer.strip().partition(".")[2])
    return round(a, places) == round(b, places) if places else int(a) == int(b)
