"""The fit-tokenizer stage: curated datasets -> a byte-level BPE `tokenizer.json` (Sennrich et al. 2016; bytes as in GPT-2) and its card.

In: every text of the datasets: prose, captions, questions, answers, action strings. Out: a folder with tokenizer.json, which encodes any
string without an unknown token and gives it back unchanged. Digits stand alone by default, so that "dx=+1.338" is made of pieces that
other numbers share. Fitting is deterministic: the same datasets and settings give the same file. A dataset larger than `max_bytes` of text
is sampled record by record, by a draw on the record's id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from pipelines.format import chance, storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import Document, Size, dump, fingerprint
from pipelines.format.errors import InputError, Stopped
from pipelines.format.estimate import Estimate
from pipelines.format.forgotten import known_as, living_rows
from pipelines.format.manifest import card, file_entry, parent, publish_card, refuse_other_recipe
from pipelines.format.part import FORMAT
from pipelines.stage import Job

VERSION = 1
FILE = "tokenizer.json"


class FitTokenizer(Document):
    """`vocab` counts the tokenizer's own ids; the five structure tokens come after them when it is used."""

    name: str = ""
    datasets: list[str] = Field(min_length=1)
    vocab: Size = Field(32_000, ge=256)
    min_frequency: int = Field(2, ge=1)
    digits: Literal["single", "runs"] = "single"
    max_bytes: Size = 1_000_000_000
    seed: int = 0
    output: str
    engine: Literal["ray", "local"] = "local"


class FitTokenizerStage:
    """`pipelines run fit-tokenizer -c RECIPE.yaml`."""

    config = FitTokenizer
    summary = "a byte-level BPE tokenizer from the text of curated datasets"

    def plan(self, config: FitTokenizer) -> Estimate:
        """Text there is and text that will be read, per dataset."""
        table = []
        for dataset in opened(config):
            there = text_bytes(dataset)
            table.append({"dataset": dataset.path, "records": dataset.card["records"], "text_bytes": there, "read": min(there, config.max_bytes)})
        facts = {"vocab": config.vocab, "text_bytes": sum(int(row["read"]) for row in table), "output": config.output}
        return Estimate(f"fit-tokenizer {config.name}", facts, table)

    def run(self, config: FitTokenizer, job: Job) -> str:
        """Fit, unless the output already holds this very tokenizer. Returns the folder."""
        datasets, output = opened(config), storage.absolute(config.output)
        settings = {k: v for k, v in dump(config).items() if k not in ("name", "datasets", "output", "engine")}
        asked = {"format": FORMAT, "stage": "fit-tokenizer", "version": VERSION, **settings, "datasets": [known_as(d) for d in datasets]}
        recipe = fingerprint(asked)
        refuse_other_recipe(output, "manifest.json", recipe)
        if storage.exists(storage.join(output, "manifest.json")):
            return output
        counted = {"records": 0, "bytes": 0}
        file = fit(config, counting(texts(config, datasets), counted, job))
        entry = file_entry(output, FILE, file)
        facts = {"records": counted["records"], "bytes": entry["bytes"], "files": [entry], "text_bytes": counted["bytes"]}
        facts |= {"vocab": len(json.loads(file)["model"]["vocab"]), "recipe_fingerprint": recipe, "sha256": entry["sha256"]}
        above = [parent(d.path, output, d.fingerprint) for d in datasets]
        made, name = fingerprint([recipe, entry["sha256"]]), config.name or "tokenizer"
        whole = card("tokenizer", name, made, dump(config), parents=above, stages={"fit-tokenizer": VERSION}, **facts)
        publish_card(output, "manifest.json", whole, recipe)
        storage.sweep(output)
        return output


STAGE = FitTokenizerStage()


def fit(config: FitTokenizer, corpus: Iterator[str]) -> bytes:
    """The tokenizer.json of a stream of texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    pieces: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if config.digits == "single" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*pieces, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab,
        min_frequency=config.min_frequency,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
    )
    tokenizer.train_from_iterator(corpus, trainer=trainer)
    return str(tokenizer.to_str(pretty=True)).encode()


def opened(config: FitTokenizer) -> list[Dataset]:
    """The datasets, each curated and with some text."""
    found = [Dataset.open(storage.absolute(path)) for path in config.datasets]
    for dataset in found:
        if dataset.encoding is not None:
            raise InputError("a tokenizer is fitted to curated text; this dataset is encoded", where=dataset.path)
    if not any(text_bytes(dataset) for dataset in found):
        raise InputError("none of these datasets holds any text", where=", ".join(config.datasets))
    return found


def shard_texts(dataset: Dataset, i: int) -> tuple[list[str], np.ndarray]:
    """All texts of a shard in order, but for forgotten ones, and for each the h of its record."""
    table = living_rows(dataset, i, ["h", "segments"])
    segments = table["segments"].combine_chunks()
    flat = pc.list_flatten(segments)
    chosen = pc.is_valid(pc.struct_field(flat, "text"))
    rows = pc.list_parent_indices(segments).filter(chosen).to_numpy(zero_copy_only=False)
    return pc.struct_field(flat, "text").filter(chosen).to_pylist(), table["h"].to_numpy()[rows]


def text_bytes(dataset: Dataset) -> int:
    """UTF-8 bytes of all texts."""
    total = 0
    for i in range(len(dataset.shards)):
        flat = pc.list_flatten(dataset.index(i, ["segments"])["segments"].combine_chunks())
        total += pc.sum(pc.binary_length(pc.struct_field(flat, "text"))).as_py() or 0
    return total


def texts(config: FitTokenizer, datasets: list[Dataset]) -> Iterator[str]:
    """The texts to fit to, in order; of a dataset with more than `max_bytes`, the share of its records that comes to that."""
    for dataset in datasets:
        share = config.max_bytes / max(text_bytes(dataset), 1)
        for i in range(len(dataset.shards)):
            found, h = shard_texts(dataset, i)
            taken = np.ones(len(found), bool) if share >= 1 else chance.uniform(chance.draw(h, config.seed, "order", 0)) < share
            yield from (text for text, take in zip(found, taken, strict=True) if take)


def counting(corpus: Iterator[str], counted: dict[str, int], job: Job) -> Iterator[str]:
    for text in corpus:
        if job.stop.is_set():
            raise Stopped("stopped before the tokenizer was fitted")
        counted["records"] += 1
        counted["bytes"] += len(text.encode())
        yield text
