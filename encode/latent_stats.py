"""The latent-stats stage: statistics that stand alone, from a published file or from what encoded datasets store.

    pipelines run latent-stats -c latent_stats file=stats.pt output=out/rae_stats              import: a file as RAE releases it
    pipelines run latent-stats -c latent_stats datasets='[out/a, out/b]' output=out/ab_stats   export: datasets together

Out: an artifact of kind `latent-stats` whose card names `stats-<hash>.parquet`, by position `stats-position-<hash>.parquet`, and `stats.pt` in
RAE's layout, float32. A mixture applies it as `normalise: {stats: out/rae_stats}`. Datasets are merged in the order of their fingerprints, as a
mixture merges them. One that was encoded before there were statistics by position has them made from its stored latents, read once.
"""

from __future__ import annotations

from functools import reduce
from math import isqrt
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from encode.published_stats import read, write
from encode.stats import Statistics, carried, merge
from pipelines.format import storage
from pipelines.format.dataset import Dataset, open_cached
from pipelines.format.document import Document, dump, fingerprint, sha256_hex
from pipelines.format.errors import InputError, RecipeError
from pipelines.format.estimate import Estimate
from pipelines.format.manifest import card, file_entry, parent, publish_card, refuse_other_recipe
from pipelines.format.moments import KIND, Moments
from pipelines.format.part import FORMAT
from pipelines.stage import Job, Step

VERSION = 1
FILE = "stats.pt"
ENDS: dict[str, Any] = {"lowest": np.min, "highest": np.max}
BLOCK = 64  # images decoded at a time when a dataset is read


class LatentStats(Document):
    """Exactly one of `file` and `datasets`. `grid` is rows and columns of an image's tokens, where its pixels do not say."""

    name: str = ""
    file: str | None = None
    datasets: list[str] = []
    grid: tuple[int, int] | None = None
    output: str
    engine: Literal["ray", "local"] = "local"

    @model_validator(mode="after")
    def _one_source(self) -> LatentStats:
        if bool(self.file) == bool(self.datasets):
            raise ValueError("exactly one of file, datasets")
        return self


class LatentStatsStage:
    """`pipelines run latent-stats -c latent_stats …`."""

    config = LatentStats
    summary = "latent statistics alone: a published .pt file, or datasets together, to Parquet and to .pt"

    def plan(self, config: LatentStats) -> Estimate:
        """What is there, without reading a latent."""
        table: list[dict[str, Any]] = []
        for dataset in opened(config):
            said = dataset.encoding["stats"]  # type: ignore[index]
            table.append({"dataset": dataset.path, "latents": said["n"], "by position": "yes" if "position" in said else "read from its latents"})
        facts = {"file": config.file, "output": config.output} if config.file else {"output": config.output}
        return Estimate("latent-stats", facts, table)

    def run(self, config: LatentStats, job: Job) -> str:
        """Make the artifact, unless it is there. Returns its folder."""
        output = storage.absolute(config.output)
        data = storage.read(storage.absolute(config.file)) if config.file else None
        datasets = opened(config)
        inputs = sha256_hex(data) if data is not None else sorted({d.fingerprint for d in datasets})
        recipe = fingerprint({"format": FORMAT, "stage": "latent-stats", "version": VERSION, "inputs": inputs, "grid": config.grid})
        refuse_other_recipe(output, "manifest.json", recipe)
        if storage.exists(storage.join(output, "manifest.json")):
            return output
        if data is not None:
            statistics, grid = read(data, str(config.file))
        else:
            statistics, grid = together(datasets, job), grid_of(config, datasets[0])
        said, files = statistics.publish(output)
        files.append(file_entry(output, FILE, write(statistics, grid)))
        facts: dict[str, Any] = {"stats": said, "files": files, "bytes": sum(f["bytes"] for f in files), "recipe_fingerprint": recipe}
        facts |= {"grid": grid, "channels": len(statistics.channel.mean), "of": {"file_sha256": inputs} if data is not None else {"datasets": inputs}}
        facts["figures"] = {"latent_stats": figures(statistics)}
        above = [parent(d.path, output, d.fingerprint) for d in datasets]
        made = fingerprint([recipe, *(f["sha256"] for f in files[:-1])])
        name = config.name or storage.absolute(output).rpartition("/")[2]
        whole = card(KIND, name, made, dump(config), parents=above, stages={"latent-stats": VERSION}, **facts)
        publish_card(output, "manifest.json", whole, recipe)
        storage.sweep(output)
        return output


STAGE = LatentStatsStage()


def figures(statistics: Statistics) -> dict[str, dict[str, Any]]:
    """What `pipelines stats` shows of them."""
    out: dict[str, dict[str, Any]] = {}
    for by, some in (("by channel", statistics.channel), ("by position", statistics.position)):
        if some is not None:
            deviation = np.sqrt(some.variance)
            spread = {f"{end} {what}": float(f(x)) for what, x in (("mean", some.mean), ("deviation", deviation)) for end, f in ENDS.items()}
            out[by] = {"values": some.mean.size, "counted": some.n or "unknown", **spread}
    return out


def opened(config: LatentStats) -> list[Dataset]:
    """The datasets, each with statistics, all of images of one shape."""
    found = [Dataset.open(storage.absolute(path)) for path in config.datasets]
    shapes = {}
    for dataset in found:
        image = (dataset.encoding or {}).get("image")
        if not image or not (dataset.encoding or {}).get("stats"):
            raise InputError("this dataset has no latent statistics", where=dataset.path, allowed="an encoded dataset with images")
        shapes[image["tokens"], image["width"]] = dataset.path
    if len(shapes) > 1:
        raise RecipeError(
            "statistics of images of several shapes do not go together",
            where="datasets",
            found=", ".join(f"{path}: {tokens} tokens of width {width}" for (tokens, width), path in shapes.items()),
            next="one artifact for each encoder",
        )
    return found


def together(datasets: list[Dataset], job: Job) -> Statistics:
    """All distinct datasets, merged in the order of their fingerprints."""
    distinct = {d.fingerprint: d for d in datasets}
    found = [complete(distinct[print_], job) for print_ in sorted(distinct)]
    channel, position = (reduce(Moments.merged, some) for some in zip(*found, strict=True))
    return Statistics(channel, position)


def complete(dataset: Dataset, job: Job) -> tuple[Moments, Moments]:
    """(by channel, by position) of one dataset, the latter from what it stores where its card does not name it."""
    statistics = carried(dataset)
    assert statistics is not None, "a dataset without statistics was refused"
    if statistics.position is not None:
        return statistics.channel, statistics.position
    step = Step(of_shard, {"dataset": (dataset.path, dataset.fingerprint)}, name="read")
    found = {shard: Moments(n, mean, m2) for shard, n, mean, m2 in job.map([step], [{"shard": i} for i in range(len(dataset.shards))])}
    position = merge(found.items())
    if position is None or position.n == 0:
        raise InputError("this dataset stores no latents to make statistics by position of", where=dataset.path)
    return statistics.channel, position


def of_shard(item: dict[str, Any], dataset: tuple[str, str]) -> tuple[int, int, np.ndarray, np.ndarray]:
    """(shard, n, mean, m2) of the distinct latents that one shard stores, in the order in which records name them."""
    parent, i = open_cached(*dataset), item["shard"]
    segments = {(s.offset, s.nbytes): s for r in parent.records(i) for s in r.segments if s.kind == "latents"}
    places = list(segments.values())
    if any(s.dtype == "jpeg" for s in places):
        raise InputError("this dataset stores no latents (`storage: none`)", where=parent.path)
    blocks = (places[k : k + BLOCK] for k in range(0, len(places), BLOCK))
    whole = merge(enumerate(Moments.of(np.stack([parent.array(i, s) for s in block])) for block in blocks))
    parent.release(i)
    return (i, 0, np.zeros(0), np.zeros(0)) if whole is None else (i, whole.n, whole.mean, whole.m2)


def grid_of(config: LatentStats, dataset: Dataset) -> tuple[int, int]:
    """Rows and columns of an image's tokens: as said, else from its pixels' proportions."""
    image = dataset.encoding["image"]  # type: ignore[index]
    tokens = image["tokens"]
    height, width = image.get("pixels", (1, 1))
    rows = isqrt(tokens * height // width)
    grid = config.grid or (rows, tokens // max(rows, 1))
    if grid[0] * grid[1] != tokens or (config.grid is None and grid[0] * width != grid[1] * height):
        raise RecipeError(
            f"{tokens} tokens are not a grid in the proportions of {height} x {width} pixels" if config.grid is None else "this is not the grid",
            where="grid",
            found=list(grid),
            allowed=f"[rows, columns] that make {tokens}",
            next="say it: grid=[rows, columns]",
        )
    return grid
