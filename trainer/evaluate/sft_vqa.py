"""Questions after one epoch of instruction data: what the run knows, once it has been shown how questions are put.

    sft_vqa: {dataset: encoded/cambrian, evaluate: [{vqa: {questions: 1000}}, {benchmark: {sets: {gqa: encoded/gqa}}}]}

    <run>/sft/plan      one epoch of `dataset` at the run's sequence length, latents normalised as the run's, without groups that its plan holds out
    <run>/sft           the fine-tuned run: from the run's weights, with lr, batch and warm-up of its own (a killed one goes on where it was)
    <run>/sft/eval.json what `evaluate` said of it; made once

Rows of the evaluations, with `sft_vqa` where they say `vqa` or `benchmark`: `sft_vqa`, `sft_vqa.blind`, `sft_vqa.choice`, …, splits held_out… of the
run's own plan, and the benchmarks' sets, `all` and groups. Items go the same way. A set that is the instruction data, or comes of it, is refused, and
questions about its pictures are not asked. Everything else of the run (its loss, its precision, its seed) is kept. lr 1e-5 and batch 128 are those of
the paper's sibling; the set there is Cambrian-7M.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import Part, Percent, Size, dump, fingerprint, part_name
from pipelines.format.errors import InputError
from pipelines.format.manifest import read_card
from trainer.evaluate import VERSION, Evaluation, Evaluations, versions
from trainer.evaluate._trained import Trained

if TYPE_CHECKING:
    from trainer.evaluate._subject import Subject

FOLDER, ASKS = "sft", ("vqa", "benchmark")


class SftVqa(Part):
    """Fine-tunes on `dataset` (encoded questions) and asks. turns: as in a mixture. init: which of the run's weights are the start."""

    dataset: str
    evaluate: Annotated[list[Evaluation], Field(min_length=1)]
    epochs: float = Field(1, gt=0)
    lr: float = Field(1e-5, gt=0)
    warmup: Percent = Field(0.03, ge=0)
    batch: Size = Field(128, ge=1)
    micro_batch: Size | None = Field(None, ge=1)
    checkpoint_every: Size | None = Field(500, ge=1)
    turns: Literal["chained", "isolated"] = "isolated"
    loss: Literal["role", "text"] = "role"
    init: Literal["last", "ema"] = "last"

    @field_validator("evaluate")
    @classmethod
    def _asks(cls, value: list[Any]) -> list[Any]:
        if wrong := [part_name(p) for p in value if part_name(p) not in ASKS]:
            raise ValueError(f"{wrong[0]} cannot be asked here; allowed: {', '.join(ASKS)}")
        if any(p.weights != "last" for p in value):
            raise ValueError("weights: a fine-tuned run keeps no moving average; `init: ema` starts from the run's")
        return value

    def reads(self) -> list[str]:
        """Datasets beside the plan's that decide the result."""
        return [self.dataset, *(path for p in self.evaluate if hasattr(p, "reads") for path in p.reads())]

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Rows sft_vqa…; the plan, the run and its answers lie in `<out>/sft`."""
        from trainer.evaluate.benchmark import opened
        from trainer.loop import train
        from trainer.models.load import load_model

        trained = Trained(Dataset.open(self.dataset), self._rule(subject))
        for path in self.reads()[1:]:
            opened(replace(subject, tuned=trained), path)  # what will be refused is refused before an epoch is spent
        place = storage.join(out, FOLDER)
        plan = self._plan(subject, storage.join(place, "plan"))
        card = train(self._run(subject, out, plan, place))
        rows = _before(place, mark := self._mark(card))
        if rows is None:
            model, _, _ = load_model(place)
            # On this run's plan: the fine-tuned run's own holds no questions that all arms are asked.
            tuned = replace(subject.judging(model), tuned=trained)
            rows = [row for part in self.evaluate for row in part.run(tuned, place)]
            storage.replace(storage.join(place, "eval.json"), _json({"fingerprint": mark, "rows": rows}), scratch=place)
        _items(place, out, sorted({row["metric"] for row in rows}))
        return [{**row, "metric": renamed(row["metric"])} for row in rows]

    def _plan(self, subject: Subject, place: str) -> str:
        from mixtures.mixture import Mixture
        from mixtures.plan import make_plan

        before = subject.plan.card
        dataset = Dataset.open(self.dataset)
        image, ours = (dataset.encoding or {}).get("image"), before["encoding"].get("image")
        if dataset.data != "vqa" or not image or not ours or image["fingerprint"] != ours["fingerprint"]:
            told = [f"{data}, {str((e or {}).get('fingerprint'))[:16]}" for data, e in ((dataset.data, image), ("vqa", ours))]
            raise InputError("instruction data are encoded questions about pictures, by the encoder of the run's plan", where=self.dataset,
                             found=told[0], allowed=told[1], next="encode it as the plan's datasets are")  # fmt: skip
        document: dict[str, Any] = {
            "name": FOLDER,
            "sequence_length": subject.plan.sequence_length,
            "held_out": self._rule(subject),
            "normalise": {"stats": subject.plan.path} if before["encoding"].get("stats") else "none",
            "sources": {FOLDER: {"dataset": self.dataset, "epochs": self.epochs, "max_epochs": self.epochs, "turns": self.turns, "loss": self.loss}},
        }
        return make_plan(Mixture.model_validate(document), place)

    def _rule(self, subject: Subject) -> dict[str, Any] | None:
        """By which the run's plan, and so the epoch's, holds groups out."""
        rule = (subject.plan.card.get("mixture") or {}).get("held_out")
        return {"fraction": rule["fraction"], "seed": rule["seed"]} if rule else None

    def _run(self, subject: Subject, out: str, plan: str, place: str) -> Any:
        """The run's document with another plan and start. Figures go to its own metrics.jsonl alone, whatever else the run logged to."""
        from trainer.run import Run

        left = ("log", "ema", "steps", "processes", "nodes", "engine", "resources", "retries")
        own = {k: v for k, v in dump(subject.run).items() if k not in left}
        first = own["optim"]
        micro = int(self.micro_batch or min(self.batch, own["micro_batch"] or own["batch"]))  # what fitted the run's memory fits again
        own |= {"name": FOLDER, "plan": plan, "output": place, "init": out, "init_ema": self.init == "ema"}
        own |= {"batch": int(self.batch), "micro_batch": micro, "checkpoint_every": self.checkpoint_every}
        own["optim"] = {**first, "lr": self.lr, "warmup": self.warmup, "schedule": "cosine", "final": 0.0}
        return Run.model_validate(own)

    def _mark(self, card: dict[str, Any]) -> str:
        """What decides the answers: the fine-tuned run, what it is asked, and what that reads."""
        read = {path: read_card(path)["fingerprint"] for p in self.evaluate if hasattr(p, "reads") for path in p.reads()}
        asked = dump(Evaluations(evaluate=self.evaluate))["evaluate"]
        changed = {"versions": found} if (found := versions(self.evaluate)) else {}
        return fingerprint({"run": card["fingerprint"], "evaluate": asked, "version": VERSION, "reads": read, **changed})


def renamed(metric: str) -> str:
    """sft_vqa for vqa and benchmark, controls and kinds kept."""
    first, dot, rest = metric.partition(".")
    return f"sft_vqa{dot}{rest}" if first in ASKS else metric


def _before(place: str, mark: str) -> list[dict[str, Any]] | None:
    path = storage.join(place, "eval.json")
    if not storage.exists(path):
        return None
    found = storage.read_json(path)
    return list(found["rows"]) if found.get("fingerprint") == mark else None


def _items(place: str, out: str, metrics: list[str]) -> None:
    """The items of vqa and benchmark together, under the run's own folder."""
    from trainer.evaluate._items import item_path, read_items, write_items

    by_name: dict[str, list[pa.Table]] = {}
    for metric in metrics:
        if storage.exists(item_path(place, metric)):
            by_name.setdefault(renamed(metric), []).append(read_items(place, metric))
    for name, tables in by_name.items():
        columns = pa.concat_tables(tables).to_pydict()
        write_items(out, name, columns["item"], columns["value"], columns["weight"], columns["split"])


def _json(value: Any) -> bytes:
    import json

    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()
