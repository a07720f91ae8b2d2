"""The answer normalisation and the soft accuracy of VQA v2 (Goyal et al., CVPR 2017), as the official evaluator of GT-Vision-Lab/VQA computes them,
and of TextVQA.

In: an answer and what people answered, each as often as it was given. Out: a number in [0, 1]: for every person who answered, min(n / 3, 1) with n
the number of *other* people who gave this answer, averaged over the people. Its oddities are kept, since scores are compared with scores that have
them: nothing is normalised where all people agree to the letter; `none` is 0; a comma between digits anywhere turns all punctuation into nothing
instead of spaces; at most 32 full stops go.

`text_accuracy` is the same score as TextVQA's evaluator computes it (facebookresearch/mmf at c46b3b3, pythia/tasks/processors.py,
`EvalAIAnswerProcessor`; Cambrian's textvqa_test.py runs a copy of it): commas and question marks go first, `'s` becomes a word, and then both sides
are normalised, also where all people agree."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"
_STOPS = 32  # where the evaluator meant to pass a flag, it passes a count
_STOP = re.compile(r"\.(?!\d)")
_COMMA = re.compile(r"\d,\d")
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBERS = {"none": "0", **{word: str(n) for n, word in enumerate(_WORDS)}}
_ARTICLES = {"a", "an", "the"}
# Words that come back with their apostrophes: `dont` becomes `don't`. Where a word has two, either may be missing, too.
_WHOLE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm I've isn't it'd it'll ma'am
    mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
    something'd something'll that's there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've
    when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_DOUBLE = """
    couldn't've hadn't've he'd've I'd've it'd've mightn't've shouldn't've somebody'd've someone'd've something'd've there'd've they'd've who'd've
    wouldn't've you'd've we'd've she'd've
"""


def _contractions() -> dict[str, str]:
    out = {whole.replace("'", ""): whole for whole in _WHOLE.split()}
    for whole in _DOUBLE.split():
        first, second, third = whole.split("'")
        out[f"{first}{second}'{third}"] = out[f"{first}'{second}{third}"] = whole
    out |= {"ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at", "somebody'd": "somebodyd"}
    out |= {"yall'll": "y'all'll", "y'allll": "y'all'll"}
    return out | dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")


CONTRACTIONS = _contractions()


def normalised(answer: str) -> str:
    """Punctuation off, lower case, number words as digits, articles off, contractions whole, single spaces."""
    out = answer
    together = _COMMA.search(answer) is not None
    for mark in _PUNCTUATION:
        out = out.replace(mark, "" if together or f"{mark} " in answer or f" {mark}" in answer else " ")
    words = [_NUMBERS.get(word, word) for word in _STOP.sub("", out, count=_STOPS).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(answer: str, given: Sequence[str]) -> float:
    """The score of `answer` beside what people gave, one entry a person."""
    said, people = _tidy(answer), [_tidy(g) for g in given]
    if len(set(people)) > 1:
        said, people = normalised(said), [normalised(p) for p in people]
    return _agreed(said, people)


def text_accuracy(answer: str, given: Sequence[str]) -> float:
    """TextVQA's score of `answer` beside what people gave, one entry a person."""
    return _agreed(_spoken(answer), [_spoken(g) for g in given])


def _spoken(answer: str) -> str:
    return normalised(_tidy(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()))


def _agreed(said: str, people: list[str]) -> float:
    """Of those who agree, each has n - 1 others who do; of the rest, each has n."""
    n = Counter(people)[said]
    return (n * min(1.0, (n - 1) / 3) + (len(people) - n) * min(1.0, n / 3)) / len(people) if n else 0.0


def _tidy(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
