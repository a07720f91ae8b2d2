"""Visual question answering on held-out questions: exact match, choice likelihood, and four controls beside them, always.

    vqa              greedy answer until EOS, equal to one of the answers (lower case, outer punctuation off); BOS, the images, that one question
    vqa.choice       questions that offer choices: the choice with the highest mean log-likelihood per token is the right one
    vqa.constant     the best constant answer per question type
    vqa.shuffled     the same model, each question with another question's images
    vqa.blind        the same model without images
    vqa.attributes   knows what is in the picture, guesses what belongs to what (where a question names no bag, the constant answer)

Rows for all questions, per type (`held_out:<type>`), and `held_out:with_bag` for the questions the bag of attributes can be set beside. Writes
answers.parquet, a row a question, which the report's tests and intervals read. Generation ends at EOS, so the source must have been trained
with `turns: isolated` or one question a record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from pipelines.format.document import Part
from pipelines.format.errors import InputError

if TYPE_CHECKING:
    from trainer.evaluate._questions import Question
    from trainer.evaluate._subject import Subject


class Vqa(Part):
    """Asks `questions` held-out questions of `source`."""

    set: Literal["held_out"] = "held_out"
    questions: int = Field(1000, ge=1)
    source: str = "vqa"

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Rows {metric, split, value, n, chance}; answers.parquet into the folder `out`."""
        from trainer.evaluate._answering import greedy
        from trainer.evaluate._questions import attribute_scores, constant_answers, guessing_scores, held_out_questions, normal, shuffled_images
        from trainer.evaluate._tokenizers import tokenizer_of

        asked = held_out_questions(subject.plan, self.source, self.questions)
        if not asked:
            raise InputError("no held-out questions", where=self.source, next="raise held_out.fraction, or name another source")
        tokenizer = tokenizer_of(subject.plan, self.source)
        own, none = [q.images for q in asked], [()] * len(asked)
        columns: dict[str, list[Any]] = _described(asked)
        views = (("", own), ("_shuffled", shuffled_images(asked)), ("_blind", none))
        for suffix, images in views:
            # Of the controls only the score is kept, so an answer that has gone wrong is not followed to its end.
            follow = (lambda q, ids: q.open(tokenizer.decode(ids))) if suffix else None
            said = [tokenizer.decode(ids.tolist()).strip() for ids in greedy(subject, asked, images, follow)]
            columns[f"correct{suffix}"] = [q.right(a) for q, a in zip(asked, said, strict=True)]
            if not suffix:
                columns["prediction"] = said
        best = constant_answers(asked)
        columns["constant"] = [best.get(q.type, "") for q in asked]
        columns["correct_constant"] = [best.get(q.type) in {normal(a) for a in q.answers} for q in asked]
        bags = attribute_scores(asked)
        columns["has_bag"] = [b is not None for b in bags]
        columns["correct_attributes"] = [float(c) if b is None else b for b, c in zip(bags, columns["correct_constant"], strict=True)]
        columns["chance"] = guessing_scores(asked)
        _choose(subject, tokenizer, asked, views, columns)
        _write(out, columns)
        return _rows(columns, self.set)


def _described(asked: list[Question]) -> dict[str, list[Any]]:
    out: dict[str, list[Any]] = {"id": [q.id for q in asked], "turn": [q.turn for q in asked], "type": [q.type for q in asked]}
    out |= {"question": [q.text for q in asked], "answer": [q.answers[0] if q.answers else "" for q in asked]}
    return out | {"answers": [list(q.answers) for q in asked]}


def _choose(subject: Subject, tokenizer: Any, asked: list[Question], views: Any, columns: dict[str, list[Any]]) -> None:
    """Columns choice_correct, choice_correct_shuffled, choice_correct_blind: None where a question offers no choices."""
    from trainer.evaluate._answering import choice_likelihoods

    offered = [i for i, q in enumerate(asked) if len(q.choices) > 1 and any(map(q.right, q.choices))]
    # Choices are spelled as answers are stored: after a space when answers begin with one.
    spaced = bool(offered) and all(tokenizer.decode(asked[i].answer_ids.tolist()).startswith(" ") for i in offered)
    spell = lambda c: np.array(tokenizer.encode(f" {c}" if spaced else c, add_special_tokens=False).ids, np.int32)
    ids = [[spell(c) for c in asked[i].choices] for i in offered]
    columns["n_choices"] = [len(q.choices) for q in asked]
    for suffix, images in views:
        scores = choice_likelihoods(subject, [asked[i] for i in offered], [images[i] for i in offered], ids)
        found: list[bool | None] = [None] * len(asked)
        for i, s in zip(offered, scores, strict=True):
            found[i] = asked[i].right(asked[i].choices[int(s.argmax())])
        columns[f"choice_correct{suffix}"] = found


def _write(out: str, columns: dict[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.format import storage

    kinds = {"choice_correct": pa.bool_(), "choice_correct_shuffled": pa.bool_(), "choice_correct_blind": pa.bool_()}
    table = pa.table({k: pa.array(v, kinds.get(k)) for k, v in columns.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.replace(storage.join(out, "answers.parquet"), sink.getvalue().to_pybytes(), scratch=out)


def _rows(columns: dict[str, list[Any]], split: str) -> list[dict[str, Any]]:
    """Means of the score columns, over all questions, per type, and over those with a bag."""
    kinds = np.array(columns["type"], dtype=object)
    bag = np.array(columns["has_bag"])
    groups = [(split, np.ones(len(kinds), bool)), *((f"{split}:{k}", kinds == k) for k in sorted(set(columns["type"])))]
    if bag.any():
        groups.append((f"{split}:with_bag", bag))
    scores = {"vqa": "correct", "vqa.shuffled": "correct_shuffled", "vqa.blind": "correct_blind", "vqa.constant": "correct_constant"}
    scores |= {"vqa.attributes": "correct_attributes", "vqa.choice": "choice_correct"}
    scores |= {"vqa.choice.shuffled": "choice_correct_shuffled", "vqa.choice.blind": "choice_correct_blind"}
    offered = [1 / n if n else np.nan for n in columns["n_choices"]]
    rows = []
    for metric, column in scores.items():
        values = np.array([np.nan if v is None else float(v) for v in columns[column]])
        chance = np.array(offered if metric.startswith("vqa.choice") else columns["chance"], np.float64)
        for name, chosen in groups:
            here = chosen & ~np.isnan(values)
            if here.any():
                value, luck = float(values[here].mean()), float(chance[here].mean())
                rows.append({"metric": metric, "split": name, "value": value, "n": int(here.sum()), "chance": luck})
    return rows
