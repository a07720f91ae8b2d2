"""Visual question answering on held-out questions: answers, choice likelihood, and four controls beside them, always.

    vqa              greedy answer until EOS; BOS, the images, that one question. score: `exact` (equal to one of the answers: lower case, outer
                     punctuation off) or `vqav2` (VQA v2's normalisation and soft accuracy over what ten people said)
    vqa.choice       questions that offer choices: the choice with the highest mean log-likelihood per token is the right one. Options that stand
                     under letters in the question, and are answered by letter, are asked in every rotation, and the score is the share of
                     rotations; where choices are answered by their own words a rotation would change nothing of what is compared, so there is none
    vqa.constant     the best constant answer per question type
    vqa.shuffled     the same model, each question with another question's images (of those that can be given one)
    vqa.blind        the same model without images
    vqa.attributes   knows what is in the picture, guesses what belongs to what (where a question names no bag, the constant answer)

Rows for all questions, per type (`held_out:<type>`), and `held_out:with_bag` for the questions the bag of attributes can be set beside. Items of
each metric are the questions (`record#turn`, split held_out:<type>). Writes answers.parquet, a row a question, which the report's tests and
intervals read. Generation ends at EOS, so the source must have been trained with `turns: isolated` or one question a record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipelines.format.document import Part
from pipelines.format.errors import InputError

if TYPE_CHECKING:
    from trainer.evaluate._subject import Subject

SCORES = {"vqa": "correct", "vqa.shuffled": "correct_shuffled", "vqa.blind": "correct_blind", "vqa.constant": "correct_constant"}
SCORES |= {"vqa.attributes": "correct_attributes", "vqa.choice": "choice_correct"}
SCORES |= {"vqa.choice.shuffled": "choice_correct_shuffled", "vqa.choice.blind": "choice_correct_blind"}


class Vqa(Part):
    """Asks `questions` held-out questions of `source`. weights: the run's last, or their moving average."""

    version: ClassVar[int] = 2  # 2: `.5` is not `5`

    set: Literal["held_out"] = "held_out"
    questions: int = Field(1000, ge=1)
    source: str = "vqa"
    score: Literal["exact", "vqav2"] = "exact"
    weights: Literal["last", "ema"] = "last"

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Rows {metric, split, value, n, chance}; answers.parquet and items into the folder `out`."""
        from trainer.evaluate._asking import asked_of
        from trainer.evaluate._questions import held_out_questions
        from trainer.evaluate._tokenizers import tokenizer_of

        asked = held_out_questions(subject.plan, self.source, self.questions)
        if not asked:
            raise InputError("no held-out questions", where=self.source, next="raise held_out.fraction, or name another source")
        columns = asked_of(subject, tokenizer_of(subject.plan, self.source), asked, self.score)
        write_answers(out, "answers.parquet", columns)
        _keep(out, columns, self.set)
        return _rows(columns, self.set)


def write_answers(out: str, name: str, columns: dict[str, list[Any]]) -> None:
    """A table of answers, a row a question."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.format import storage

    kinds = {k: pa.float64() for k, v in columns.items() if k.startswith("choice_correct") or all(x is None for x in v)}
    table = pa.table({k: pa.array(v, kinds.get(k)) for k, v in columns.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.replace(storage.join(out, name), sink.getvalue().to_pybytes(), scratch=out)


def _keep(out: str, columns: dict[str, list[Any]], split: str) -> None:
    from trainer.evaluate._items import write_items

    names = [f"{id}#{turn}" for id, turn in zip(columns["id"], columns["turn"], strict=True)]
    for metric, column in SCORES.items():
        there = [i for i, v in enumerate(columns[column]) if v is not None]
        values, types = [float(columns[column][i]) for i in there], [f"{split}:{columns['type'][i]}" for i in there]
        write_items(out, metric, [names[i] for i in there], values, splits=types)


def _rows(columns: dict[str, list[Any]], split: str) -> list[dict[str, Any]]:
    """Means of the score columns, over all questions, per type, and over those with a bag."""
    kinds = np.array(columns["type"], dtype=object)
    bag = np.array(columns["has_bag"])
    groups = [(split, np.ones(len(kinds), bool)), *((f"{split}:{k}", kinds == k) for k in sorted(set(columns["type"])))]
    if bag.any():
        groups.append((f"{split}:with_bag", bag))
    offered = [1 / n if n else np.nan for n in columns["n_choices"]]
    rows = []
    for metric, column in SCORES.items():
        values = np.array([np.nan if v is None else float(v) for v in columns[column]])
        chance = np.array(offered if metric.startswith("vqa.choice") else columns["chance"], np.float64)
        for name, chosen in groups:
            here = chosen & ~np.isnan(values)
            if here.any():
                value, luck = float(values[here].mean()), float(chance[here].mean())
                rows.append({"metric": metric, "split": name, "value": value, "n": int(here.sum()), "chance": luck})
    return rows
