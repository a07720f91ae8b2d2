"""The build-entries stage: curated text → a list of entries for `metaclip`, after the recipe of the published list (Xu et al. 2024, §3.1).

In: datasets of text. Out: a folder with entries.json, a JSON list in this order: the numerals 0 … 99, the entries of other lists (`entry_sources`:
plain ones, WordNet's lemmas, titles of articles by views), words seen `min_count` times or more (commonest first), and pairs of neighbouring words
with pointwise mutual information of `min_pmi` bits or more (highest first). Words are cut as matching cuts them (spaces, and marks on their own),
and what stands at a word's ends but is no part of it (brackets, quotes) is taken off; what holds no letter and no digit is no word, and no pair
goes across it. The list follows from the texts and the settings alone: an entry's place is its id, the same on every run.

    shard ──count──▶ (words, or pairs of kept words, by bucket) ──sum a bucket──▶ those seen often enough ──▶ list

PMI = log2(n_xy · N / (n_x · n_y)), N words in all. It grows with the corpus: the published 30 bits are for the whole English Wikipedia (N ≈ 3 · 10⁹)
and leave only words that occur nearly always together; for 10⁸ words, 12 to 15 do the same.
"""

from __future__ import annotations

import functools
import string
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from pipelines.entries import FILE, entry_file
from pipelines.entry_sources import Counted, counted, included, sayable, wordnet
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import Document, Percent, Size, canon, dump, fingerprint, sha256_hex
from pipelines.format.errors import InputError, Stopped
from pipelines.format.estimate import Estimate
from pipelines.format.forgotten import known_as, living
from pipelines.format.manifest import card, file_entry, parent, publish_card, refuse_other_recipe
from pipelines.format.part import FORMAT
from pipelines.format.shard import parquet_bytes
from pipelines.format.storage import join
from pipelines.matching import spacing
from pipelines.stage import Job, Step

VERSION = 1
BUCKETS = 32
MARKS = string.punctuation + "“”‘’«»„–—…"
COUNTS = pa.schema([("bucket", pa.int32()), ("words", pa.string()), ("n", pa.int64())])


class BuildEntries(Document):
    """`include`, `wordnet` and `counted` are lists by path (`entry_sources`). `max_pairs` is a share of the number of words kept (the second
    version's is 40 %); the list ends at `max_entries`."""

    name: str = ""
    datasets: list[str] = Field(min_length=1)
    include: list[str] = Field(default_factory=list)
    wordnet: list[str] = Field(default_factory=list)
    counted: list[Counted] = Field(default_factory=list)
    numerals: bool = True
    min_count: Size = Field(100, ge=1)
    min_pair_count: Size = Field(20, ge=1)
    min_pmi: float = 12.0
    max_pairs: Percent = Field(0.4, ge=0)
    max_entries: Size = Field(500_000, ge=1)
    output: str
    engine: Literal["ray", "local"] = "local"


class BuildEntriesStage:
    """`pipelines run build-entries -c RECIPE.yaml`."""

    config = BuildEntries
    summary = "a list of entries for metaclip from the words and word pairs of curated text"

    def plan(self, config: BuildEntries) -> Estimate:
        """What would be read."""
        table = [{"dataset": d.path, "records": d.card["records"], "shards": len(d.shards)} for d in opened(config)]
        table += [{"dataset": path, "records": len(found), "shards": None} for _, path, found in lists(config)]
        return Estimate(f"build-entries {config.name}", {"max_entries": config.max_entries, "output": config.output}, table)

    def run(self, config: BuildEntries, job: Job) -> str:
        """Count and select, unless the output already holds this very list. Returns the folder."""
        datasets, output = opened(config), storage.absolute(config.output)
        settings = {k: v for k, v in dump(config).items() if k not in ("name", "datasets", "include", "wordnet", "output", "engine")}
        settings["counted"] = [{k: v for k, v in c.items() if k != "path"} for c in settings["counted"]]
        paths = [*(("include", p) for p in config.include), *(("wordnet", p) for p in config.wordnet), *(("counted", c.path) for c in config.counted)]
        others = [[kind, sha256_hex(storage.map_file(entry_file(path)))] for kind, path in paths]
        asked = {"format": FORMAT, "stage": "build-entries", "version": VERSION, **settings, "lists": others}
        recipe = fingerprint({**asked, "datasets": [known_as(d) for d in datasets]})
        refuse_other_recipe(output, "manifest.json", recipe)
        if storage.exists(join(output, "manifest.json")):
            return output
        given = list(lists(config))  # first, so that a list that cannot be read is said before hours of counting
        work = join(output, "_work", recipe[:16])
        words = counts(job, datasets, join(work, "words"), config.min_count, [])
        pairs = counts(job, datasets, join(work, "pairs"), config.min_pair_count, words)
        entries, figures = select(config, given, load(words), load(pairs))
        entry = file_entry(output, FILE, canon(entries))
        facts = {"records": len(entries), "bytes": entry["bytes"], "files": [entry], "recipe_fingerprint": recipe, "figures": {"entries": figures}}
        above = [parent(d.path, output, d.fingerprint) for d in datasets]
        whole = card(
            "entries",
            config.name or "entries",
            fingerprint([recipe, entry["sha256"]]),
            dump(config),
            parents=above,
            stages={"build-entries": VERSION},
            **facts,
        )
        publish_card(output, "manifest.json", whole, recipe)
        storage.delete_tree(join(output, "_work"))
        storage.sweep(output)
        return output


STAGE = BuildEntriesStage()


Given = list[tuple[str, str, list[str]]]


def select(config: BuildEntries, given: Given, words: dict[str, int], pairs: dict[str, int]) -> tuple[list[str], dict[str, int]]:
    """The list, and how many entries each source gave first. `words` has the number of all words under "", and every word of a pair."""
    total = words.pop("", 0)
    by_count = sorted(words, key=lambda w: (-words[w], w))
    pmi = {p: np.log2(n * total / (words[p.split(" ")[0]] * words[p.split(" ")[1]])) for p, n in pairs.items()}
    by_pmi = sorted((p for p in pmi if pmi[p] >= config.min_pmi), key=lambda p: (-pmi[p], p))[: int(config.max_pairs * len(words))]
    others = {kind: [e for k, _, found in given if k == kind for e in found] for kind in ("wordnet", "included", "counted")}
    numerals = [str(n) for n in range(100)] if config.numerals else []
    entries: dict[str, None] = {}
    figures = {"words_read": total}
    for name, source in [("numerals", numerals), *others.items(), ("words", by_count), ("pairs", by_pmi)]:
        before = len(entries)
        entries.update(dict.fromkeys(source))
        figures[name] = min(len(entries), config.max_entries) - min(before, config.max_entries)
    if not entries:
        raise InputError("no entry is common enough", found=f"{total:,} words", allowed=f"min_count {config.min_count:,}", next="lower min_count")
    return list(entries)[: config.max_entries], figures


def lists(config: BuildEntries) -> Iterator[tuple[str, str, list[str]]]:
    """(kind, path, entries) of the lists that others made."""
    yield from (("wordnet", path, wordnet(path)) for path in config.wordnet)
    yield from (("included", path, included(path)) for path in config.include)
    yield from (("counted", c.path, counted(c)) for c in config.counted)


def opened(config: BuildEntries) -> list[Dataset]:
    """The datasets, each curated."""
    found = [Dataset.open(storage.absolute(path)) for path in config.datasets]
    for dataset in found:
        if dataset.encoding is not None:
            raise InputError("entries are made from curated text; this dataset is encoded", where=dataset.path)
    return found


def counts(job: Job, datasets: list[Dataset], prefix: str, least: int, vocabulary: list[str]) -> list[str]:
    """Files of (words, n ≥ least) by bucket: of words, or, given the files of those kept, of pairs of them."""
    shards = [{"dataset": d.path, "shard": i} for d in datasets for i in range(len(d.shards))]
    maps: list[dict[str, Any]] = [{**s, "out": f"{prefix}-map-{n:05d}.parquet"} for n, s in enumerate(shards)]
    _run(job, Step(count_shard, {"vocabulary": vocabulary}, name="count"), maps)
    sums: list[dict[str, Any]] = [{"bucket": b, "in": [m["out"] for m in maps], "out": f"{prefix}-sum-{b:05d}.parquet"} for b in range(BUCKETS)]
    _run(job, Step(sum_bucket, {"least": least}, name="sum"), sums)
    return [s["out"] for s in sums]


def _run(job: Job, step: Step, items: list[dict[str, Any]]) -> None:
    todo = [item for item in items if not storage.exists(item["out"])]
    for _ in job.map([step], todo) if todo else ():
        pass
    if job.stop.is_set():
        raise Stopped("stopped before the entry list was made")


def count_shard(item: dict[str, Any], vocabulary: list[str]) -> dict[str, Any]:
    """Words (with their number under ""), or pairs of words of the vocabulary, of one shard."""
    dataset = Dataset.open(item["dataset"])
    texts = (s.text for r in living(dataset, item["shard"]) for s in r.segments if s.text)
    seen: Counter[str] = Counter()
    if vocabulary:
        kept = _vocabulary(tuple(vocabulary))
        for text in texts:
            seen.update(f"{a} {b}" for a, b in pairwise(cut(text)) if a in kept and b in kept)
    else:
        for text in texts:
            seen.update(cut(text))
        del seen[""]
        seen[""] = seen.total()
    rows = sorted(seen.items())
    table = {"bucket": [zlib.crc32(w.encode()) % BUCKETS for w, _ in rows], "words": [w for w, _ in rows], "n": [n for _, n in rows]}
    storage.publish(item["out"], parquet_bytes(pa.table(table, schema=COUNTS)))
    return {"out": item["out"]}


def sum_bucket(item: dict[str, Any], least: int) -> dict[str, Any]:
    """One bucket over all shards: what was seen at least that often."""
    parts = [_read(path, filters=pc.field("bucket") == item["bucket"]) for path in item["in"]]
    table = pa.concat_tables(parts).group_by("words").aggregate([("n", "sum")])
    kept = table.filter(pc.or_(pc.greater_equal(table["n_sum"], least), pc.equal(table["words"], ""))).sort_by("words")
    made = pa.table({"bucket": pa.array([item["bucket"]] * len(kept), pa.int32()), "words": kept["words"], "n": kept["n_sum"]}, schema=COUNTS)
    storage.publish(item["out"], parquet_bytes(made))
    return {"out": item["out"]}


def cut(text: str) -> list[str]:
    """Words in order, with "" where two neighbours would not match as one entry: marks, quotes, brackets and double spaces between them."""
    out: list[str] = []
    for token in spacing(text).split(" "):
        word = token.strip(MARKS)
        if not word or not sayable(word):
            out.append("")
            continue
        out += [""] if token[:1] != word[:1] else []
        out.append(word)
        out += [""] if token[-1:] != word[-1:] else []
    return out


def load(files: list[str]) -> dict[str, int]:
    """words → n over these files."""
    out: dict[str, int] = {}
    for path in files:
        table = _read(path)
        out.update(zip(table["words"].to_pylist(), table["n"].to_pylist(), strict=True))
    return out


@functools.lru_cache(maxsize=1)
def _vocabulary(files: tuple[str, ...]) -> frozenset[str]:
    return frozenset(load(list(files))) - {""}


def _read(path: str, **kwargs: Any) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read(path)), **kwargs)
