"""Questions put to a model and to its controls, scored: what `vqa` and `benchmark` share.

In: questions with their ids and latents, and a rule. Out: columns, a value a question: what was said, how right it was as asked, with another
question's images and without any; the best constant answer; the bag of attributes; and, where choices are offered, whether the likeliest one was
right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.evaluate._questions import Question, attribute_scores, constant_answers, guessing_scores, shuffled_images
from trainer.evaluate._scores import Rule, hopeless, score

if TYPE_CHECKING:
    from trainer.evaluate._subject import Subject

Columns = dict[str, list[Any]]
Images = tuple[np.ndarray, ...]
CONTROLS = ("_shuffled", "_blind")
BUDGET = 128  # tokens of an answer under `anls`, whatever the true one: what the evaluation of Cambrian's sets lets models say


def asked_of(subject: Subject, tokenizer: Any, asked: Sequence[Question], rule: Rule, margin: int | None = None) -> Columns:
    """All columns: `answered` and `guessed`."""
    return answered(subject, tokenizer, asked, rule, margin) | guessed(asked, rule)


def answered(subject: Subject, tokenizer: Any, asked: Sequence[Question], rule: Rule, margin: int | None = None) -> Columns:
    """What the model makes of the questions; None where a control has nothing to show. `margin`: tokens that an answer may be longer than the true
    one (default: as `greedy`'s); under `anls` every answer may be BUDGET long."""
    from trainer.evaluate._answering import MARGIN, greedy

    views = views_of(asked)
    columns: Columns = described(asked)
    length: dict[str, int] = {"budget": BUDGET} if rule == "anls" else {"margin": MARGIN if margin is None else margin}
    for suffix, images in views:
        here = [(i, q, shown) for i, (q, shown) in enumerate(zip(asked, images, strict=True)) if shown is not None]
        found = greedy(subject, [q for _, q, _ in here], [shown for *_, shown in here], _follow(rule, tokenizer, bool(suffix)), **length)
        said = {i: tokenizer.decode(ids.tolist()).strip() for (i, *_), ids in zip(here, found, strict=True)}
        columns[f"correct{suffix}"] = [graded(rule, said[i], q) if i in said else None for i, q in enumerate(asked)]
        if not suffix:
            columns["prediction"] = [said[i] for i in range(len(asked))]
    choose(subject, tokenizer, asked, views, columns)
    return columns


def _follow(rule: Rule, tokenizer: Any, control: bool) -> Callable[[Question, list[int]], bool] | None:
    """Whether an answer is worth following to its end. Of controls only the score is kept; one that ANLS gives nothing however it goes on is left in
    any case, since without a cache each token costs a reading of the picture."""
    if rule == "anls":
        return lambda q, ids: not hopeless(tokenizer.decode(ids).rstrip("\ufffd"), q.answers)
    return (lambda q, ids: q.open(tokenizer.decode(ids))) if control and rule == "exact" else None


def guessed(asked: Sequence[Question], rule: Rule) -> Columns:
    """What needs no model, and no picture: all questions together, since the best constant answer is that of all."""
    columns: Columns = {}
    best = constant_answers(asked, rule)
    columns["constant"] = [best.get(q.type, "") for q in asked]
    columns["correct_constant"] = [graded(rule, best.get(q.type, ""), q) for q in asked]
    bags = attribute_scores(asked)
    columns["has_bag"] = [b is not None for b in bags]
    columns["correct_attributes"] = [float(c) if b is None else b for b, c in zip(bags, columns["correct_constant"], strict=True)]
    columns["chance"] = guessing_scores(asked)
    return columns


def views_of(asked: Sequence[Question]) -> list[tuple[str, Sequence[Images | None]]]:
    """What the model is shown: its own images, another question's (None where no other has any to give), none."""
    return [("", [q.images for q in asked]), ("_shuffled", shuffled_images(asked)), ("_blind", [()] * len(asked))]


def graded(rule: Rule, said: str, q: Question) -> float | bool:
    """A score; by exact match a truth value, as tables of answers have always had."""
    found = score(rule, said, q)
    return bool(found) if rule == "exact" else found


def described(asked: Sequence[Question]) -> Columns:
    """What was asked."""
    out: Columns = {"id": [q.id for q in asked], "turn": [q.turn for q in asked], "type": [q.type for q in asked]}
    out |= {"question": [q.text for q in asked], "answer": [q.answers[0] if q.answers else "" for q in asked]}
    return out | {"answers": [list(q.answers) for q in asked], "n_choices": [len(q.choices) for q in asked]}


def choose(subject: Subject, tokenizer: Any, asked: Sequence[Question], views: list[tuple[str, Sequence[Images | None]]], columns: Columns) -> None:
    """Columns choice_correct, choice_correct_shuffled, choice_correct_blind: the share of rotations in which the choice with the highest mean
    log-likelihood per token is the right one; None where a question offers no choices. `rotations`: in how many ways it was asked."""
    from trainer.evaluate._answering import choice_likelihoods
    from trainer.evaluate._rotating import rotations

    offered = [i for i, q in enumerate(asked) if len(q.choices) > 1 and any(map(q.right, q.choices))]
    # Choices are spelled as answers are stored: after a space when answers begin with one.
    spaced = bool(offered) and all(tokenizer.decode(asked[i].answer_ids.tolist()).startswith(" ") for i in offered)
    spell = lambda c: np.array(tokenizer.encode(f" {c}" if spaced else c, add_special_tokens=False).ids, np.int32)
    ways = [(i, way) for i in offered for way in rotations(asked[i], tokenizer)]
    ids = [[spell(c) for c in way.options] for _, way in ways]
    columns["rotations"] = [0] * len(asked)
    for i, _ in ways:
        columns["rotations"][i] += 1
    for suffix, images in views:
        here = [(i, way, shown, spelled) for (i, way), spelled in zip(ways, ids, strict=True) if (shown := images[i]) is not None]
        scores = choice_likelihoods(subject, [way.question for _, way, *_ in here], [shown for *_, shown, _ in here], [s for *_, s in here])
        found: list[float | None] = [None] * len(asked)
        for (i, way, *_), s in zip(here, scores, strict=True):
            right = asked[i].right(asked[i].choices[way.order[int(s.argmax())]])
            found[i] = (found[i] or 0.0) + right / columns["rotations"][i]
        columns[f"choice_correct{suffix}"] = found
