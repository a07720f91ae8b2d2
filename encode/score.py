"""The score stage: a curated dataset -> the same dataset with score columns, so that filters and mixtures can ask how good a record is.

    parent shards -> parts -> load (CPU) -> score (device) -> write (CPU) -> indexes -> card with the scorers and how their scores are spread

Every row of an index stays what it was, but for its scores: ids, keys, groups, captions, hashes. Pictures are not copied: shards point at the
parent's data files, with their sizes and hashes, so `verify --deep` reads them there. Each distinct image of a part is decoded and looked at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from encode.encoder import as_written
from encode.scoring.figures import figures
from encode.scoring.parts import VERSION, opened, score_parts, scores_identity
from encode.scoring.recipe import ScoreRecipe
from pipelines.build import Build, build
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import dump, fingerprint, part_name
from pipelines.format.estimate import Estimate
from pipelines.format.manifest import parent
from pipelines.format.part import FORMAT
from pipelines.stage import Job, Step

Commits = Callable[[], Iterator[dict[str, Any]]]


class ScoreStage:
    """`pipelines run score -c RECIPE.yaml`."""

    config = ScoreRecipe
    summary = "pictures and captions to score columns: similarity, classifiers, aesthetic heads; no pixel is copied"

    def plan(self, config: ScoreRecipe) -> Estimate:
        """Records, images, bytes and scorers, without scoring anything."""
        dataset = opened(config)
        parts = score_parts(config, dataset)
        distinct, references = (sum(p[k] for p in parts) for k in ("images", "references"))
        facts = {"dataset": dataset.path, "records": dataset.card["records"], "parts": len(parts), "images": distinct}
        files = {(shard.data, shard.data_bytes) for shard in dataset.shards}
        facts |= {"image_references": references, "bytes_read": sum(n or 0 for _, n in files), "bytes_copied": 0}
        facts |= {"index_bytes_estimated": sum(shard.index_bytes for shard in dataset.shards), "output": config.output}
        return Estimate(f"score {config.name or dataset.card['name']}", facts, [_row(name, s) for name, s in config.scorers().items()])

    def run(self, config: ScoreRecipe, job: Job) -> str:
        """Make the scored dataset; returns its path."""
        dataset, output = opened(config), storage.absolute(config.output)
        # No path stands in the fingerprint: the parent is known by how it was made, the scorers by the hashes of what they read.
        made = {"parent": dataset.card.get("recipe_fingerprint"), "scores": scores_identity(config)}
        return build(
            job,
            Build(
                output=output,
                name=config.name or dataset.card["name"],
                data=dataset.data,
                recipe=dump(config),
                fingerprint=fingerprint({"format": FORMAT, "stage": "score", "version": VERSION, **made}),
                parts=score_parts(config, dataset),
                chain=chain(config, dataset, output, job),
                parents=[parent(dataset.path, output, dataset.fingerprint)],
                versions={"score": VERSION, **{part_name(s): s.version for s in config.scorers().values()}},
                extras=lambda commits: extras(config, dataset, commits),
            ),
        )


STAGE = ScoreStage()


def chain(config: ScoreRecipe, dataset: Dataset, output: str, job: Job) -> list[Step]:
    """load -> score -> write."""
    from encode.scoring.chain import Score, load, write

    scorers, read = config.scorers(), (dataset.path, dataset.fingerprint)
    gpus = gpus_each(config)
    settings = {"scorers": scorers, "device": None if gpus else "cpu", "cpus": config.resources.cpus}
    look = Step(Score, settings, cpus=config.resources.cpus, gpus=gpus, actors=config.resources.actors, name="score")
    first = Step(load, {"dataset": read, "scorers": scorers}, name="load")
    return [first, look, Step(write, {"dataset": read, "root": output, "scorers": scorers}, name="write")]


def gpus_each(config: ScoreRecipe) -> float:
    """GPUs of one scoring worker: as asked, else one where the driver sees any."""
    from encode.encoder import machine_for

    if config.resources.gpus is not None:
        return config.resources.gpus
    return 1.0 if machine_for("auto").device == "cuda" else 0.0


def extras(config: ScoreRecipe, dataset: Dataset, commits: Commits) -> dict[str, Any]:
    """What the card says beside counts: every score's spread, and what made it; also of scores that were there, by their own cards."""
    stats = [(c["written"], c["stats"]) for c in commits()]
    seen: dict[str, set[str]] = {name: set() for name in config.scores}
    for _, s in stats:
        for name, made in s["scorers"].items():
            seen[name].add(made)
    scorers = {name: {"scorer": as_written(s), "fingerprint": _one(sorted(seen[name]), s), **_hashes(s)} for name, s in config.scorers().items()}
    told = figures((s["scores"] for _, s in stats), sum(n for n, _ in stats))
    return {"scorers": {**dataset.card.get("scorers", {}), **scorers}, "figures": {"scores": told}}


def _one(seen: list[str], scorer: Any) -> str:
    """A job that ran on several kinds of device has a fingerprint of its own."""
    return seen[0] if len(seen) == 1 else fingerprint(seen or scorer.identity())


def _hashes(scorer: Any) -> dict[str, Any]:
    identity = scorer.identity()
    return {"weights_sha256": identity["sight"]["weights"], "rule": identity["rule"], "preprocessing": identity["sight"]["preprocessing"]}


def _row(name: str, scorer: Any) -> dict[str, Any]:
    processor = scorer.sight().processor()
    row = {"score": name, "scorer": part_name(scorer), "weights": scorer.sight().weights, "of": "image, caption" if scorer.reads else "image"}
    return {**row, "pixels": f"{processor.height}×{processor.width}", "dtype": scorer.dtype, "batch": scorer.batch}
