"""Answers of a model: greedy generation, and the likelihood of offered choices.

Greedy decoding without a cache would read the picture again for every token. Instead the true answer is offered as a draft: where the model's
own choice agrees with it token by token, one pass settles the whole answer; where it departs, generation goes on from its own token. What comes
out is exactly greedy decoding (the draft is only a guess of it, as in speculative decoding, Leviathan et al., ICML 2023), at 1 to 2 passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from trainer.evaluate._questions import Question
from trainer.evaluate._subject import Subject, document

MARGIN = 4  # an answer this many tokens longer than the true one, without an end, is not going to match it
Images = Sequence[tuple[np.ndarray, ...]]
Open = Callable[[Question, list[int]], bool]


def greedy(
    subject: Subject, questions: Sequence[Question], images: Images, open_: Open | None = None, margin: int = MARGIN, budget: int | None = None
) -> list[np.ndarray]:
    """Each question's answer ids up to EOS (left out); without one, up to `margin` past the true answer's length, or the first `budget`, where the
    score is of how much was said and so the true answer must not decide where it ends.

    With `open_(question, ids so far)`, an answer is left as soon as it says False: where the score is wanted and not the words.
    """
    specials = subject.specials
    answers: list[list[int]] = [[] for _ in questions]
    limit = [len(q.answer_ids) + margin if budget is None else budget for q in questions]
    going = list(range(len(questions)))
    first = True
    while going:
        branches = [questions[i].answer_ids if first else np.array(answers[i], np.int32) for i in going]
        documents = [document(questions[i].ids, images[i], [b], specials, questions[i].places) for i, b in zip(going, branches, strict=True)]
        still = []
        for place, said in _said(subject, documents, branches):
            i = going[place]
            start = len(answers[i])  # before the first pass nothing is settled, later everything in the branch is
            ended = _accept(answers[i], branches[place], said, start, specials)
            if not ended and len(answers[i]) < limit[i] and (open_ is None or open_(questions[i], answers[i])):
                still.append(i)
        going, first = sorted(still), False
    return [np.array(a if budget is None else a[:budget], np.int32) for a in answers]  # a draft may be longer than the budget


def _accept(answer: list[int], branch: np.ndarray, said: np.ndarray, start: int, specials: tuple[int, ...]) -> bool:
    """Append what the model said from `start` on, as far as the branch agrees and one token beyond. True at a structure token: the end."""
    for place in range(start, len(said)):
        token = int(said[place])
        if token in specials:
            return True
        answer.append(token)
        if place >= len(branch) or token != branch[place]:
            return False
    return False


def _said(subject: Subject, documents: list, branches: list[np.ndarray]) -> list[tuple[int, np.ndarray]]:
    """(document, the model's choice after the question and after each token of the branch: one more than the branch has)."""
    out = []
    for places, batch in subject.batches(documents):
        length = batch.shape[1]
        ends = np.array([len(documents[p]) for p in places])
        counts = np.array([len(branches[p]) + 1 for p in places])
        at = np.concatenate([row * length + np.arange(end - count, end) for row, (end, count) in enumerate(zip(ends, counts, strict=True))])
        chosen = subject.logits(batch, at).argmax(dim=1).cpu().numpy()
        out += list(zip(places, np.split(chosen, np.cumsum(counts)[:-1]), strict=True))
    return out


def choice_likelihoods(subject: Subject, questions: Sequence[Question], images: Images, choices: Sequence[list[np.ndarray]]) -> list[np.ndarray]:
    """Per question the mean log-likelihood per token (nats) of each choice, all choices of a question in one pass."""
    documents = [document(q.ids, im, ids, subject.specials, q.places) for q, im, ids in zip(questions, images, choices, strict=True)]
    scores: list[np.ndarray] = [np.zeros(0)] * len(questions)
    for places, batch in subject.batches(documents):
        at, wanted, owner = [], [], []
        for row, p in enumerate(places):
            start = row * batch.shape[1]
            last = len(documents[p]) - sum(map(len, choices[p])) - 1  # the question's last token predicts every choice's first
            here = last + 1
            for k, ids in enumerate(choices[p]):
                at += [start + last, *range(start + here, start + here + len(ids) - 1)]
                wanted += ids.tolist()
                owner += [(p, k)] * len(ids)
                here += len(ids)
        logp = torch.log_softmax(subject.logits(batch, np.array(at)), dim=1)
        found = logp.gather(1, torch.tensor(wanted, device=logp.device)[:, None])[:, 0].double().cpu().numpy()
        for p in places:
            scores[p] = np.zeros(len(choices[p]))
        for (p, k), value in zip(owner, found, strict=True):
            scores[p][k] += value / len(choices[p][k])
    return scores
