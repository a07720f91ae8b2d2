"""Raw files → curated shards: one function for all five kinds of data.

    part ──source.read──▶ records ──filters──▶ records ──transforms──▶ records ──▶ shards, rejects, commit      (one fused map, a row a part)

Only the descriptor of a part and its summary travel between processes; records never do. The verb on the command line (`text`, `image-text`,
`video`, `action-video`, `vqa`) states the kind of record that is expected, and a recipe of another kind is refused before anything runs.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from pipelines import retry, rounds
from pipelines.build import Build, Watch, build, commit_parts, complete, part_fingerprint, recipe_fingerprint, seal
from pipelines.format import storage
from pipelines.format.document import dump, fingerprint, parse, part_name, sha256_hex
from pipelines.format.errors import HeadwaterError, RecipeError, Reject
from pipelines.format.estimate import Estimate
from pipelines.format.manifest import parent, parent_path
from pipelines.format.part import PartWriter, dropped_path
from pipelines.format.record import Record
from pipelines.format.storage import join
from pipelines.recipe import Recipe
from pipelines.stage import Job, Rejected, Step


class Curate:
    """The stage behind the five verbs."""

    config = Recipe

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.summary = f"raw files to curated shards of {kind}"

    def plan(self, config: Recipe) -> Estimate:
        """Parts, files and bytes that would be read."""
        self._expect(config)
        parts = config.source.parts()
        inputs = {tuple(i[:2]) for p in parts for i in p.inputs}
        unknown = sum(size is None for _, size in inputs)  # files on the web: what they weigh is not known before they are fetched
        facts: dict[str, Any] = {"parts": len(parts), "files": len(inputs), **({"to_fetch": unknown} if unknown else {})}
        facts |= {"bytes_in": sum(size or 0 for _, size in inputs), "output": config.output}
        stages = [config.source, *config.filters, *config.transforms, *config.across]
        return Estimate(f"{self.kind} {config.name}", facts, [{"step": part_name(s), **_short(s)} for s in stages])

    def run(self, config: Recipe, job: Job) -> str:
        """Make the dataset; returns its path."""
        self._expect(config)
        output = storage.absolute(config.output)
        recipe, versions = config.resolved(), config.versions()
        kind = part_name(config.source)
        told = {**recipe, "source": {kind: config.source.hashed(recipe["source"][kind])}}
        if files := _beside(config):
            told["files"] = files
        whole = recipe_fingerprint("curate", told, versions)
        items = [
            {"part": i, "root": output, "spec": p.spec, "items": max(len(p.inputs), 1), "fingerprint": part_fingerprint(whole, p.spec, p.inputs)}
            for i, p in enumerate(config.source.parts())
        ]
        chain = [Step(curate_part, {"recipe": dump(config)}, cpus=config.resources.cpus, name="curate")]
        above = [parent(path, output, found) for path, found in config.source.parents()]
        made = Build(output, config.name, self.kind, recipe, whole, items, chain, parents=above, versions=versions)
        if config.retry or retry.any_there(config.source, output):
            made = self._with_retries(config, job, made)
        return self._across(config, job, made) if config.across else _build(job, made, config.keep_dropped)

    def _with_retries(self, config: Recipe, job: Job, made: Build) -> Build:
        """The build with the parts that earlier retries appended and, when asked for, those of a new one. What they follow is committed first."""
        if config.across:
            raise RecipeError("a retry is of a recipe without `across`", where="retry", next="fetch with one recipe, then compare with another")
        commit_parts(job, made)
        made = replace(made, parts=[*made.parts, *retry.appended(config.source, made.output, made.fingerprint, made.parts)])
        if config.retry:
            commit_parts(job, made)
            new = retry.fresh(config.source, made.output, made.fingerprint, made.parts, retry.REASONS[config.retry])
            # By number, as the next run will find them: a card is made of its parts in that order.
            made = replace(made, parts=sorted([*made.parts, *new], key=lambda item: item["part"]))
        return made

    def _across(self, config: Recipe, job: Job, final: Build) -> str:
        """Candidates first, then the stages that see all of them, then the dataset without what they dropped."""
        everything = fingerprint([[p["fingerprint"] for p in final.parts], final.fingerprint])  # a survivor depends on every other record
        items = [{**p, "fingerprint": fingerprint([everything, p["part"]])} for p in final.parts]
        final = replace(final, parts=items)
        done = complete(final) and (not config.keep_dropped or complete(_dropped(final)))
        if done and storage.exists(join(final.output, "manifest.json")):
            return build(job, final)
        candidates = join(rounds.work(final.output), "candidates")
        root = [{**p, "root": candidates} for p in items]
        _build(job, replace(_at(final, candidates), name=f"{config.name} (candidates)", parts=root), config.keep_dropped)
        drops, figures = rounds.find_drops(job, config, final.output, candidates, _beside(config))
        kwargs = {"candidates": candidates, "drops": drops, "shard_bytes": config.shard_bytes, "keep_dropped": config.keep_dropped}
        chain = [Step(rounds.rewrite_part, kwargs, cpus=config.resources.cpus, name="rewrite")]
        final = replace(final, chain=chain, extras=lambda commits: {"figures": figures} if figures else {})
        _build(job, final, config.keep_dropped)
        storage.delete_tree(rounds.work(final.output))
        return final.output

    def _expect(self, config: Recipe) -> None:
        if config.source.data != self.kind:
            raise RecipeError(
                "the recipe makes another kind of record than the verb says",
                where=f"source: {part_name(config.source)}",
                found=config.source.data,
                allowed=self.kind,
                next=f"pipelines run {config.source.data} -c …",
            )


TEXT, IMAGE_TEXT, VIDEO, ACTION_VIDEO, VQA = (Curate(k) for k in ("text", "image-text", "video", "action-video", "vqa"))


def _build(job: Job, made: Build, keep_dropped: bool) -> str:
    """`build`, and with `keep_dropped` the dataset of what was dropped beside it: its parts are committed by the same chain, just before."""
    if not keep_dropped:
        return build(job, made)
    commit_parts(job, replace(_dropped(made), name=made.name))
    build(job, made)
    seal(_dropped(made))
    return made.output


def _dropped(made: Build) -> Build:
    return replace(_at(made, dropped_path(made.output)), name=f"{made.name} (dropped)", extras=None)


def _at(made: Build, output: str) -> Build:
    """The same build in another place, from where its parents are seen otherwise."""
    above = [parent(parent_path({"path": made.output}, p), output, p["fingerprint"]) for p in made.parents]
    return replace(made, output=output, parents=above)


def _beside(config: Recipe) -> list[list[str]]:
    """What is in the files that filters and whole-dataset stages read beside the source: another model or list makes another dataset."""
    parts = [*config.filters, *config.across]
    return [[part_name(p), sha256_hex(storage.map_file(storage.absolute(path)))] for p in parts for path in p.files()]


def curate_part(item: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """Read, filter, transform and commit one part; the commit record is the result."""
    r = parse(Recipe, recipe)
    watch = r.error_budget.watch()
    kept = {"shard_bytes": r.shard_bytes, "items": item["items"], "keep_dropped": r.keep_dropped}
    with PartWriter(item["root"], item["part"], fingerprint=item["fingerprint"], **kept) as writer:
        for found in _read(r, item["spec"]):
            writer.emit()
            if isinstance(found, Rejected):
                writer.reject(found.origin, "read", found.reason, found.detail)
                watch.saw(found.detail if found.reason.startswith("error:") else None)
            else:
                _one(r, found, writer, watch)
        return writer.commit(retries=item.get("retries"))


def _read(r: Recipe, spec: dict[str, Any]) -> Iterator[Record | Rejected]:
    """The source's records; a source that breaks off costs the rest of its part, said as one reject."""
    origin = f"{part_name(r.source)}:{spec}"
    try:
        yield from r.source.read(spec, r.name)
    except HeadwaterError:
        raise
    except Reject as e:
        yield Rejected(origin, e.reason, e.detail)
    except Exception as e:
        yield Rejected(origin, f"error:{type(e).__name__}", traceback.format_exc(limit=-4))


def _one(r: Recipe, record: Record, writer: PartWriter, watch: Watch) -> None:
    """One record through filters and transforms to its end: written, filtered or rejected."""
    stage = "filter"
    try:
        for f in r.filters:
            stage = part_name(f)
            reason = f.reason(record)
            if reason is not None:
                writer.drop(record, stage, reason)
                watch.saw(None)
                return
            record = f.kept(record)
        made = [record]
        for t in r.transforms:
            stage = part_name(t)
            made = [out for one in made for out in _apply(t, one)]
    except HeadwaterError:
        raise
    except Reject as e:
        writer.reject(record.origin, stage, e.reason, e.detail, id=record.id)
        watch.saw(None)
        return
    except Exception as e:
        detail = traceback.format_exc(limit=-4)
        writer.reject(record.origin, stage, f"error:{type(e).__name__}", detail, id=record.id)
        watch.saw(f"{record.id} in {stage}: {e!r}")
        return
    watch.saw(None)
    if not made:
        writer.drop(record, stage, "empty")
        return
    writer.emit(len(made) - 1)
    for out in made:
        writer.add(out)


def _apply(transform: Any, record: Record) -> Iterable[Record]:
    return list(transform.apply(record))


def _short(part: Any) -> dict[str, Any]:
    text = ", ".join(f"{k}={v}" for k, v in part.model_dump(mode="json").items())
    return {"settings": text if len(text) < 160 else text[:157] + "…"}
