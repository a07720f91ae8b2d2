"""The caption-distance stage: how far captions lie from a text corpus, the figure that goes with what image-text data does to a language model.

In: curated datasets of captions and of text. Out: a card with, for each set of captions, 1 − cos of the angle between its mean direction and the
corpus's. In the table this follows (Table 1 of "Beyond Language Modeling"; the embedder is not named there), sets of captions at larger distance
from the language model's text left it with worse perplexity. Vectors are hashed word n-grams, or a sentence model's.

Beside each figure stand what it is not: `within`, the distance of one half of the set from the other (what chance alone gives at this number of
texts), and `error`, the standard error over eight parts of the captions. A dataset with several captions an image gives a row for each name, and one
for all of them. Texts are sampled by a draw on the record's id, so neither sharding nor order shows. The figures stand in the card, free of paths.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from encode.text_vectors import TextVectors
from encode.text_vectors.hashed import Hashed
from pipelines.format import chance, storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import Document, PartOf, Size, canon, dump, fingerprint
from pipelines.format.errors import InputError, Stopped
from pipelines.format.estimate import Estimate
from pipelines.format.forgotten import known_as, living_rows
from pipelines.format.manifest import card, file_entry, parent, publish_card, refuse_other_recipe
from pipelines.format.part import FORMAT
from pipelines.stage import Job

VERSION = 1
FILE = "distances.json"
PARTS = 8  # of each set, for `within` and `error`
BATCH = 4_096  # texts a call


class CaptionDistance(Document):
    """`captions` and `text` are paths of curated datasets; at most `max_records` of each are read."""

    name: str = ""
    captions: list[str] = Field(min_length=1)
    text: list[str] = Field(min_length=1)
    vectors: Annotated[Any, PartOf("encode.text_vectors")] = Hashed()
    max_records: Size = 100_000
    seed: int = 0
    output: str
    engine: Literal["ray", "local"] = "local"


class CaptionDistanceStage:
    """`pipelines run caption-distance -c RECIPE.yaml`."""

    config = CaptionDistance
    summary = "cosine distance of captions to a text corpus"

    def plan(self, config: CaptionDistance) -> Estimate:
        """Records there are and that will be read."""
        both = [("captions", d) for d in opened(config.captions)] + [("text", d) for d in opened(config.text)]
        table = [{"as": k, "dataset": d.path, "records": d.card["records"], "read": min(d.card["records"], config.max_records)} for k, d in both]
        return Estimate(f"caption-distance {config.name}", {"output": config.output}, table)

    def run(self, config: CaptionDistance, job: Job) -> str:
        """Measure, unless the output already holds this very figure. Returns the folder."""
        captions, text, output = opened(config.captions), opened(config.text), storage.absolute(config.output)
        settings = {k: v for k, v in dump(config).items() if k not in ("name", "captions", "text", "output", "engine")}
        asked = {"format": FORMAT, "stage": "caption-distance", "version": VERSION, **settings, "vectors_are": config.vectors.identity()}
        recipe = fingerprint({**asked, "captions": [known_as(d) for d in captions], "text": [known_as(d) for d in text]})
        refuse_other_recipe(output, "manifest.json", recipe)
        if storage.exists(storage.join(output, "manifest.json")):
            return output
        figures = measured(config, captions, text, job)
        entry = file_entry(output, FILE, canon(figures))
        facts = {"files": [entry], "bytes": entry["bytes"], "recipe_fingerprint": recipe, "figures": figures}
        above = [parent(d.path, output, d.fingerprint) for d in [*captions, *text]]
        made, name = fingerprint([recipe, entry["sha256"]]), config.name or "caption-distance"
        whole = card("caption-distance", name, made, dump(config), parents=above, stages={"caption-distance": VERSION}, **facts)
        publish_card(output, "manifest.json", whole, recipe)
        storage.sweep(output)
        return output


STAGE = CaptionDistanceStage()


def opened(paths: list[str]) -> list[Dataset]:
    """The datasets, each curated."""
    found = [Dataset.open(storage.absolute(path)) for path in paths]
    for dataset in found:
        if dataset.encoding is not None:
            raise InputError("distances are of curated text; this dataset is encoded", where=dataset.path)
    return found


def measured(config: CaptionDistance, captions: list[Dataset], text: list[Dataset], job: Job) -> dict[str, Any]:
    """The figures of each set of captions, and what is known of the corpus."""
    corpus = sum((sets for d in text for sets in directions(config, d, job).values()), Sums(config.vectors))
    if not corpus.texts:
        raise InputError("the corpus holds no text", where=", ".join(config.text))
    out: dict[str, Any] = {}
    names = [str(d.card["name"]) for d in captions]
    for dataset, name in zip(captions, names, strict=True):
        # The same name twice is told apart by what the data are: a path would say where this machine keeps them.
        told = name if names.count(name) == 1 else f"{name} {dataset.fingerprint[:8]}"
        found = directions(config, dataset, job)
        if len(found) > 1:
            out[f"{told}: all"] = figures_of(sum(found.values(), Sums(config.vectors)), corpus)
        out |= {f"{told}: {caption}" if caption else told: figures_of(sums, corpus) for caption, sums in found.items()}
    if not out:
        raise InputError("these datasets hold no captions", where=", ".join(config.captions))
    return {"captions": out, "corpus": rounded(corpus.facts())}


def figures_of(found: Sums, corpus: Sums) -> dict[str, Any]:
    """Distance, its error and what stands beside them."""
    apart = [distance(part, corpus.total) for part in found.parts if part.any()]
    error = float(np.std(apart, ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else None
    return rounded({"distance": distance(found.total, corpus.total), "error": error, **found.facts()})


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    """To six digits, beyond which nothing is known."""
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in figures.items()}


class Sums:
    """Sums of unit vectors of one set of texts, in PARTS parts."""

    def __init__(self, vectors: TextVectors) -> None:
        self.vectors = vectors
        self.parts: list[NDArray[np.float64]] = [np.zeros(1)] * PARTS
        self.texts = self.pieces = 0

    def add(self, texts: list[str], part: int) -> None:
        """Take in some texts of one part."""
        vector, pieces = self.vectors.sums(texts)
        self.parts[part] = self.parts[part] + vector
        self.texts += len(texts)
        self.pieces += pieces

    def __add__(self, other: Sums) -> Sums:
        both = Sums(self.vectors)
        both.parts = [a + b for a, b in zip(self.parts, other.parts, strict=True)]
        both.texts, both.pieces = self.texts + other.texts, self.pieces + other.pieces
        return both

    @property
    def total(self) -> NDArray[np.float64]:
        """The sum over all parts."""
        return np.sum([p for p in self.parts if p.any()], axis=0)

    def facts(self) -> dict[str, Any]:
        """How much was read, and how far one half of it is from the other."""
        halves = [np.sum([p for p in self.parts[h::2] if p.any()], axis=0) for h in (0, 1)]
        within = distance(*halves) if all(np.ndim(h) and np.any(h) for h in halves) else None
        return {"within": within, "texts": self.texts, "pieces": self.pieces}


def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """1 − cos of two directions."""
    return float(1.0 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def directions(config: CaptionDistance, dataset: Dataset, job: Job) -> dict[str, Sums]:
    """Sums over the sampled texts of a dataset, by the name of the caption ("" for text that has none)."""
    share = config.max_records / max(dataset.card["records"], 1)
    out: dict[str, Sums] = defaultdict(lambda: Sums(config.vectors))
    for i in range(len(dataset.shards)):
        if job.stop.is_set():
            raise Stopped("stopped before the distance was measured")
        by: dict[tuple[str, int], list[str]] = defaultdict(list)
        for name, part, text in sampled(dataset, i, share, config.seed):
            group = by[name, part]
            group.append(text)
            if len(group) == BATCH:
                out[name].add(group, part)
                by[name, part] = []
        for (name, part), group in by.items():
            if group:
                out[name].add(group, part)
    return dict(sorted(out.items()))


def sampled(dataset: Dataset, i: int, share: float, seed: int) -> Iterator[tuple[str, int, str]]:
    """(caption's name, part, text) of the records of a shard that the draw takes."""
    table = living_rows(dataset, i, ["h", "segments"])
    h = table["h"].to_numpy()
    taken = np.ones(len(h), bool) if share >= 1 else chance.uniform(chance.draw(h, seed, "order", 0)) < share
    part = (chance.draw(h, seed, "order", 1) % np.uint64(PARTS)).astype(np.int64)
    segments = table["segments"].combine_chunks()
    flat = pc.list_flatten(segments)
    rows = pc.list_parent_indices(segments).to_numpy(zero_copy_only=False)
    chosen = pc.is_valid(pc.struct_field(flat, "text")).to_numpy(zero_copy_only=False) & taken[rows]
    texts, names = (pc.struct_field(flat, key).filter(chosen).to_pylist() for key in ("text", "member"))
    yield from zip((name or "" for name in names), part[rows[chosen]].tolist(), texts, strict=True)
