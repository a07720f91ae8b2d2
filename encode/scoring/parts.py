"""Which rows are scored together, and what is refused before anything runs.

In: a curated dataset and a recipe. Out: the list of parts {part, fingerprint, shard, first, rows, images, references}: runs of rows of one parent
shard with at most 1,024 distinct images and 256 MiB of pictures (of all sizes that the scorers ask for), a pure function of both. A part's
fingerprint holds the parent's hashes and the scorers' identities and no path, so a dataset that was moved is not scored again.
"""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc

from encode.parts import MAX_BYTES, MAX_IMAGES, left_out, shard_runs
from encode.scoring.recipe import ScoreRecipe
from pipelines.captions import column
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import fingerprint
from pipelines.format.errors import InputError, RecipeError
from pipelines.format.forgotten import forgotten_rows
from pipelines.format.part import FORMAT

VERSION = 1


def score_parts(recipe: ScoreRecipe, dataset: Dataset) -> list[dict[str, Any]]:
    """All parts of a score job, numbered from 0."""
    limit, identity = image_limit(recipe), scores_identity(recipe)
    out: list[dict[str, Any]] = []
    forgotten = forgotten_rows(dataset)
    for i, shard in enumerate(dataset.shards):
        inputs = [[shard.index_bytes, shard.index_sha256], [shard.data_bytes, shard.data_sha256]]
        for run in shard_runs(dataset, i, limit):
            spec = {"shard": i, "first": run.first, "rows": run.rows, **left_out(forgotten, i, run)}
            said = {"format": FORMAT, "stage": "score", "version": VERSION, "scores": identity, "spec": spec, "inputs": inputs}
            out.append({"part": len(out), "fingerprint": fingerprint(said), **spec, "images": run.images, "references": run.references})
    return out


def image_limit(recipe: ScoreRecipe) -> int:
    """Distinct images a part may hold: each is prepared once for every kind of preparation that the scorers ask for."""
    kinds = {s.sight().processor() for s in recipe.scorers().values()}
    return max(1, min(MAX_IMAGES, MAX_BYTES // sum(p.height * p.width * 3 for p in kinds)))


def scores_identity(recipe: ScoreRecipe) -> dict[str, Any]:
    """What the scores depend on, apart from the records."""
    return {name: scorer.identity() for name, scorer in sorted(recipe.scorers().items())}


def opened(recipe: ScoreRecipe) -> Dataset:
    """The curated dataset, with what cannot be scored refused."""
    dataset = Dataset.open(storage.absolute(recipe.dataset))
    if dataset.encoding is not None:
        what = "scores are of pictures and captions; this dataset is encoded"
        raise InputError(what, where=recipe.dataset, next="name the dataset it was made from")
    if not any(shard.data for shard in dataset.shards):
        raise InputError("this dataset holds no images", where=recipe.dataset, found=dataset.data)
    for name, scorer in recipe.scorers().items():
        if scorer.reads and dataset.data != "image-text":
            raise RecipeError("this score compares pictures with captions, and the dataset has none", where=f"scores.{name}", found=dataset.data)
        scorer.check()
    if not recipe.replace:
        _new_names(recipe, dataset)
    return dataset


def _new_names(recipe: ScoreRecipe, dataset: Dataset) -> None:
    known = known_scores(dataset)
    for name, scorer in recipe.scorers().items():
        taken = sorted(k for k in known if k == name or (scorer.reads and k.startswith(column(name, ""))))
        if taken:
            raise InputError(
                "the dataset has this score already",
                where=f"{recipe.dataset}, scores.{name}",
                found=", ".join(taken[:5]),
                next="name the new one differently, or set `replace: true`",
            )


def known_scores(dataset: Dataset) -> set[str]:
    """The names of all scores that any record has."""
    found: set[str] = set()
    for i in range(len(dataset.shards)):
        for chunk in dataset.index(i, ["scores"])["scores"].chunks:
            found.update(pc.unique(chunk.keys).to_pylist())
    return found
