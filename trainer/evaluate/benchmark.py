"""Public benchmarks of visual question answering, each an encoded dataset by path, scored by the set's own rule.

    benchmark: {sets: {gqa: encoded/gqa, mmbench: encoded/mmbench, mine: {dataset: encoded/mine, score: exact}}, questions: 1000}

A set is curated by the recipe of its name (`pipelines run vqa -c benchmark_gqa`) and encoded like the run's own pictures; the 16 sets of
Cambrian-1 are known by name (_benchmarks.py says how each is scored), another says its score.

    benchmark            greedy answers; split <set>, then `all` (the mean over sets) and the groups general, knowledge, ocr_chart, vision
    benchmark.choice     where choices are offered: the likeliest one, in every rotation of lettered options (as `vqa.choice`)
    .blind, .shuffled    the same without images, and with another question's; also of `benchmark.choice`
    benchmark.constant   the best constant answer per question type of the set

Items of each: what a set's score is the weighted mean of, split <set>. Writes answers-<set>.parquet. `all` stands only where every set has the
metric."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from pipelines.format.dataset import Dataset
from pipelines.format.document import Document, Part
from pipelines.format.errors import InputError
from trainer.evaluate._scores import Rule

if TYPE_CHECKING:
    from trainer.evaluate._asking import Columns
    from trainer.evaluate._benchmarks import Kind, Unit
    from trainer.evaluate._questions import Question
    from trainer.evaluate._subject import Subject
    from trainer.evaluate._trained import Trained

SCORES = {
    "benchmark": "correct",
    "benchmark.shuffled": "correct_shuffled",
    "benchmark.blind": "correct_blind",
    "benchmark.constant": "correct_constant",
    "benchmark.choice": "choice_correct",
    "benchmark.choice.shuffled": "choice_correct_shuffled",
    "benchmark.choice.blind": "choice_correct_blind",
}
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
LONGER: dict[Rule, int] = {"contains": 16, "vqav2": 8, "textvqa": 8}
AT_ONCE = 1000  # questions with their pictures in memory: 1.2 GB of 256 x 1152
RESERVED = ("all", "held_out", "general", "knowledge", "ocr_chart", "vision")


class Own(Document):
    """A set that is not known by name, or one that is to be scored otherwise than its own rule says."""

    dataset: str
    score: Rule | None = None


class Benchmark(Part):
    """Asks up to `questions` questions of each set (null: all). longer: tokens that an answer may be longer than the true one (null: 16 where the
    answer need only stand in what was said, 8 where people's words are compared, else 4: what is longer is wrong). ANLS is of the whole answer, so
    there each may have 128 tokens, whatever the true one. weights: the run's last, or their moving average."""

    # 2: TextVQA's own normalisation; ANLS of whole answers; the constant answer of MMVP is one; nobody is shown their own picture; `.5` is not `5`.
    version: ClassVar[int] = 2

    sets: Annotated[dict[Name, str | Own], Field(min_length=1)]
    questions: int | None = Field(None, ge=1)
    longer: int | None = Field(None, ge=1)
    weights: Literal["last", "ema"] = "last"

    @model_validator(mode="after")
    def _known(self) -> Benchmark:
        from trainer.evaluate._benchmarks import SETS

        for name, one in self.sets.items():
            if name in RESERVED:
                raise ValueError(f"sets: {name!r} is the name of a mean over sets")
            if name not in SETS and (isinstance(one, str) or one.score is None):
                raise ValueError(f"sets.{name}: no such set; known: {', '.join(SETS)}; another one says its score: {{dataset: PATH, score: exact}}")
        return self

    def reads(self) -> list[str]:
        """Datasets beside the plan's that decide the result."""
        return [one if isinstance(one, str) else one.dataset for one in self.sets.values()]

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Rows {metric, split, value, n, chance}; tables of answers and items into the folder `out`."""
        from trainer.evaluate._items import write_items

        rows: list[dict[str, Any]] = []
        items: dict[str, list[tuple[str, str, float, float]]] = defaultdict(list)
        for name, one in self.sets.items():
            for metric, units, found, weight, chance in self._set(subject, out, name, one):
                value = float(np.average(found, weights=weight))
                n = sum(len(u.questions) for u in units)
                rows.append({"metric": metric, "split": name, "value": value, "n": n, "chance": chance})
                items[metric] += [(u.name, name, float(v), float(w)) for u, v, w in zip(units, found, weight, strict=True)]
        for metric, kept in items.items():
            names, splits, values, weights = zip(*kept, strict=True)
            write_items(out, metric, names, values, weights, splits)
        return [*rows, *self._means(rows)]

    def _kind(self, name: str, one: str | Own) -> Kind:
        from trainer.evaluate._benchmarks import SETS, Kind

        rule = None if isinstance(one, str) else one.score
        kind = SETS.get(name) or Kind(rule or "exact")
        return kind if rule is None else kind._replace(rule=rule)

    def _set(self, subject: Subject, out: str, name: str, one: str | Own) -> list[tuple[str, list[Unit], np.ndarray, np.ndarray, float | None]]:
        """(metric, units, value and weight of each, what guessing gets) for every metric of a set."""
        from trainer.evaluate import _benchmarks as sets
        from trainer.evaluate._tokenizers import dataset_tokenizer
        from trainer.evaluate.vqa import write_answers

        kind, path = self._kind(name, one), one if isinstance(one, str) else one.dataset
        dataset = opened(subject, path)
        units, questions = _units(kind, dataset, self.questions, subject.tuned)
        columns, bare = self._columns(subject, kind, dataset_tokenizer(dataset), questions, sum(len(u.questions) for u in units))
        write_answers(out, f"answers-{name}.parquet", columns)
        made = []
        guess, weight = sets.values(kind, units, [sets.luck(kind, q) for q in bare])
        for metric, column in SCORES.items():
            found, _ = sets.values(kind, units, columns[column])
            there = ~np.isnan(found)
            if there.any():
                lucky = guess[there]
                chance = None if np.isnan(lucky).any() else float(np.average(lucky, weights=weight[there]))
                made.append((metric, [u for u, k in zip(units, there, strict=True) if k], found[there], weight[there], chance))
        return made

    def _columns(self, subject: Subject, kind: Kind, tokenizer: Any, asked: Iterable[Question], total: int) -> tuple[Columns, list[Question]]:
        """Every column, and the questions without their pictures, of which AT_ONCE are in memory together."""
        from trainer.evaluate._asking import answered, guessed
        from trainer.evaluate._benchmarks import guessed_by, pieces

        columns: Columns = {}
        bare: list[Question] = []
        for some in pieces(asked, total, AT_ONCE):
            for name, column in answered(subject, tokenizer, some, kind.rule, self.longer or LONGER.get(kind.rule)).items():
                columns.setdefault(name, []).extend(column)
            bare += [replace(q, images=()) for q in some]
        return columns | guessed(guessed_by(kind, bare), kind.rule), bare

    def _means(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Means over sets that weigh alike: all of them, and each group that has one."""
        from trainer.evaluate._benchmarks import SETS

        groups: dict[str, list[str]] = {"all": list(self.sets)}
        for name in self.sets:
            if name in SETS:
                groups.setdefault(SETS[name].group, []).append(name)
        out = []
        for metric in SCORES:
            found = {r["split"]: r for r in rows if r["metric"] == metric}
            for group, members in groups.items():
                if all(m in found for m in members):
                    mine = [found[m] for m in members]
                    chances = [r["chance"] for r in mine]
                    chance = None if None in chances else float(np.mean(chances))
                    value = float(np.mean([r["value"] for r in mine]))
                    out.append({"metric": metric, "split": group, "value": value, "n": sum(r["n"] for r in mine), "chance": chance})
        return out


def opened(subject: Subject, path: str) -> Dataset:
    """An encoded dataset of questions whose ids and latents are those the run was trained on; InputError for any other, and for one that the run, or
    a fine-tuning since, has seen."""
    from trainer.evaluate._encoded import Encoded

    dataset = Dataset.open(path)
    if dataset.fingerprint in {d["fingerprint"] for d in subject.plan.card.get("datasets") or []}:
        raise InputError("the run's plan reads this dataset: its questions were trained on", where=path, next="`vqa` asks what is held out")
    if subject.tuned is not None:
        subject.tuned.refuse(dataset)
    ours, theirs = subject.plan.card["encoding"], dataset.encoding or {}
    if dataset.data != "vqa" or not theirs.get("text"):
        raise InputError("a benchmark is an encoded dataset of questions", where=path, found=dataset.data, next="pipelines run vqa, then encode")
    words = [(e.get("text") or {}).get("tokenizer_sha256") for e in (theirs, ours)]
    if words[0] != words[1]:
        raise InputError("this set is encoded with another tokenizer than the run's", where=path, found=str(words[0])[:16],
                         allowed=str(words[1])[:16], next="encode it with the tokenizer of the plan's datasets")  # fmt: skip
    pictures = [(e.get("image") or {}).get("fingerprint") for e in (theirs, ours)]
    if pictures[0] != pictures[1] and pictures[0] is not None:
        raise InputError("this set is encoded by another encoder than the run's", where=path, found=str(pictures[0])[:16],
                         allowed=str(pictures[1])[:16], next="encode it as the plan's datasets are")  # fmt: skip
    return dataset if subject.reader.pictures is None else Encoded(dataset, subject.reader.pictures)


def _units(kind: Kind, dataset: Dataset, limit: int | None, tuned: Trained | None = None) -> tuple[list[Unit], Iterator[Question]]:
    """The units to ask for, and their questions in order, by whose place units know them; each is read when it is asked for. Units about pictures
    that were `tuned` on are passed over."""
    from trainer.evaluate import _benchmarks as sets
    from trainer.evaluate._questions import dataset_records, question_of

    places, keys = [], []
    for place in dataset_records(dataset):
        record = place[2]
        for asked in record.fields.get("questions", []):
            type = str(asked.get("type") or "all")
            if sets.kept(kind, type):
                places.append((place, int(asked["turn"])))
                keys.append((record.id, record.group, int(asked["turn"]), type))
    if not places:
        raise InputError("this set has no question to ask", where=dataset.path, allowed=", ".join(sorted(kind.types)) or "any type")
    units: list[Unit] = []
    order: list[int] = []
    for unit in sets.chosen(_fresh(sets.units_of(kind, keys, dataset.path), [group for _, group, *_ in keys], dataset.path, tuned), limit):
        units.append(unit._replace(questions=tuple(range(len(order), len(order) + len(unit.questions)))))
        order += list(unit.questions)
    chained = lambda i: bool(places[i][0][2].fields.get("dialogue"))
    return units, (question_of(*places[i][0], places[i][1], chained(i)) for i in order)


def _fresh(units: list[Unit], groups: list[str], where: str, tuned: Trained | None) -> list[Unit]:
    """The units of which no question is about a picture that was trained on; a warning says how many are left out."""
    if tuned is None:
        return units
    seen = tuned.has(groups)
    fresh = [u for u in units if not seen[list(u.questions)].any()]
    if not fresh:
        raise InputError("every picture of this set stands in the instruction data that the run was fine-tuned on", where=where,
                         found=tuned.dataset.path, next="`vqa` asks what is held out")  # fmt: skip
    if len(fresh) < len(units):
        said = f"{where}: {int(seen.sum())} of {len(groups)} questions are about pictures of the instruction data, and are not asked"
        warnings.warn(said, stacklevel=2)
    return fresh
