"""Plans: a mixture becomes packed sequences on disk, and packed sequences are read back.

    mixture ──draft──▶ units that each budget takes ──rows──▶ spans in order of consumption ──files──▶ sequences-*.parquet … plan.json

`make_plan` reads indexes only and writes rows as they come; its card is counted from what was written. `Plan` is what the trainer reads: row
i as a list of spans, the datasets they point into, and the rules by which they are laid out. The same mixture, datasets and code
give the same bytes, on any machine.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from mixtures import dual, latent_stats
from mixtures.balance import Balanced
from mixtures.budget import Draft, draft
from mixtures.layout import Layout, layout
from mixtures.mixture import Mixture
from mixtures.plan_file import ROWS_PER_FILE, RowFile, RowWriter, list_files, row_path, table_of
from mixtures.rows import held_out_rows, train_rows
from mixtures.span import Row, SourceRules, Span, Spans, Specials
from mixtures.tally import Tally, describe
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import dump, fingerprint
from pipelines.format.errors import InputError, RecipeError, Stopped
from pipelines.format.forgotten import tombstone_entry
from pipelines.format.index import record_of
from pipelines.format.manifest import card, parent, publish_card, read_card, refuse_other_recipe
from pipelines.format.part import FORMAT
from pipelines.format.record import Record

__all__ = ["Layout", "Plan", "Row", "SourceRules", "Span", "Specials", "layout", "make_plan"]
VERSION = 2  # of the planner (2: no unit is carried over two packing windows): a change of what a mixture comes to takes a new number


def make_plan(
    mixture: Mixture,
    output: str | None = None,
    *,
    latent_stats_over: Sequence[str] = (),
    records_from: str | None = None,
    job: Any = None,
) -> str:
    """Plan `mixture` and write it to `output` (default: its own `output`). Returns that path; a finished plan is left as it is.

    `latent_stats_over` are datasets whose images are to be normalised together with the mixture's own, so that arms share statistics.
    `records_from` is a plan whose records this one is to train on (arms that differ in their encoder); default: the mixture's own key.
    Raises RecipeError, BudgetError (exit 3), or ConflictError when another plan lies there.
    """
    root = output or mixture.output
    if root is None:
        raise RecipeError("a plan needs a place", where="output", found="nothing", allowed="a path")
    normalised = [Dataset.open(p) for p in dict.fromkeys([*(p for s in mixture.sources.values() for p in s.paths), *latent_stats_over])]
    records_from = records_from or mixture.records_from
    other = read_card(records_from)["fingerprint"] if records_from is not None else None
    fixed = latent_stats.named_by(mixture)
    identity = plan_fingerprint(mixture, {d.path: d for d in normalised}, other, fixed)
    refuse_other_recipe(root, "plan.json", identity)
    if storage.exists(storage.join(root, "plan.json")):
        return root
    through = job if getattr(job, "where", "local") == "ray" else None
    spills = storage.join(root, ".planning")  # where the workers of other machines find it
    try:
        drafted = draft(mixture, records_from, through, spills if through is not None else None)
        moments, of_target = dual.settled(mixture.normalise, fixed, normalised, drafted.encoding)
        rows, facts = _write(drafted, root, job)
    finally:
        if through is not None:
            storage.delete_tree(spills)
    nbytes = sum(f["bytes"] for f in rows)
    files, more = list_files(root, rows)
    encoding = dict(drafted.encoding)
    if of_target is not None:
        encoding["target_stats"], entry = latent_stats.publish(root, of_target)
        files.append(entry)
    if moments is not None:
        encoding["stats"], entry = latent_stats.publish(root, moments)
        files.append(entry)
    datasets = [parent(d.path, root, d.fingerprint) | {"name": d.card["name"], "data": d.data} for d in drafted.datasets]
    resolved = dump(mixture)
    facts |= {"mixture": resolved, "datasets": datasets, "encoding": encoding, "files": files, "bytes": nbytes} | more
    name = mixture.name or storage.absolute(root).rstrip("/").rsplit("/", 1)[-1]
    parents = [{"path": d["path"], "fingerprint": d["fingerprint"]} for d in datasets]
    parents += [parent(fixed.path, root, fixed.fingerprint)] if fixed else []
    parents += [parent(records_from, root, other)] if records_from and other else []
    made = card("plan", name, identity, resolved, parents=parents, stages={"mix": VERSION}, recipe_fingerprint=identity, **facts)
    publish_card(root, "plan.json", made)
    storage.sweep(root)
    return root


def plan_fingerprint(
    mixture: Mixture, datasets: dict[str, Dataset], records_from: str | None = None, fixed: latent_stats.Fixed | None = None
) -> str:
    """sha256 of what decides a plan's bytes: the mixture without places and names, the datasets' fingerprints, and the planner's version.

    `records_from` is the fingerprint of the plan whose records are taken; `fixed` the statistics that the mixture names.
    """
    said = {k: v for k, v in dump(mixture).items() if k not in ("name", "output", "engine", "records_from")}
    said["sources"] = {k: {f: v for f, v in s.items() if f != "dataset"} for k, s in said["sources"].items()}
    if fixed is not None:
        said["normalise"] = {"stats": fixed.sha256}
    used = {name: dual.one_or_two([datasets[p].fingerprint for p in s.paths]) for name, s in mixture.sources.items()}
    forgotten = {d.fingerprint: entry["sha256"] for d in datasets.values() if (entry := tombstone_entry(d))}
    normalised = sorted({d.fingerprint for d in datasets.values() if latent_stats.has_latents(d)})
    parts: dict[str, Any] = {"datasets": used, "latent_stats": normalised, "tombstones": forgotten}
    if records_from is not None:
        parts["records_from"] = records_from
    return fingerprint({"format": FORMAT, "mixture": said, "planner": VERSION, **parts})


def _write(drafted: Draft, root: str, job: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Both splits, window by window: (entries of the files, facts of the card)."""
    names = [d.name for d in drafted.sources]
    row = drafted.mixture.sequence_length
    tallies = {"train": Tally(names), "heldout": Tally(names)}
    files: list[dict[str, Any]] = []

    def tables(split: str, windows: Iterator[tuple[int, Spans]]) -> Iterator[pa.Table]:
        for stage, spans in windows:
            if job is not None and job.stop.is_set():
                raise Stopped("stopped while planning", where=root, next="the same command again")
            tallies[split].add(spans)
            yield table_of(spans, stage if split == "train" else 0, row)

    train = tables("train", train_rows(drafted))
    balanced = Balanced(train, drafted.mixture.balance) if drafted.mixture.balance else None
    for split, rows in (("train", train if balanced is None else balanced), ("heldout", tables("heldout", held_out_rows(drafted)))):
        writer = RowWriter(root, split)
        for table in rows:
            writer.add(table)
        files += writer.close()
    facts = describe(drafted, tallies["train"], tallies["heldout"])
    return files, facts | ({"balance": balanced.facts()} if balanced is not None else {})


class Plan:
    """A plan, read. Datasets are opened when first touched, at the snapshot that was planned."""

    def __init__(self, path: str, card: dict[str, Any]) -> None:
        self.path, self.card = path, card
        self.sequence_length: int = card["sequence_length"]
        self.specials = Specials.of(card["encoding"])
        self.sources: list[str] = sorted(card["sources"])
        self.file = functools.lru_cache(maxsize=8)(RowFile.read)
        self._tables = functools.lru_cache(maxsize=32)(lambda dataset, shard: self.datasets[dataset].index(shard))
        self._record = functools.lru_cache(maxsize=4096)(self._read_record)

    @classmethod
    def open(cls, path: str) -> Plan:
        """The plan at `path`."""
        found = read_card(path)
        if found["kind"] != "plan":
            raise InputError("this is not a plan", where=path, found=found["kind"])
        return cls(found["path"], found)

    @functools.cached_property
    def datasets(self) -> list[Dataset]:
        """What `Span.dataset` counts."""
        at = storage.absolute(self.path)
        return [Dataset.open(storage.resolve(d["path"], at), d["fingerprint"]) for d in self.card["datasets"]]

    def rules(self, source: str | int) -> SourceRules:
        """How spans of a source, by name or number, are laid out."""
        name = self.sources[source] if isinstance(source, int) else source
        return SourceRules(**self.card["sources"][name]["rules"])

    def sequences(self, split: str = "train") -> int:
        """Rows of a split: train or heldout."""
        return int(self.card["records"] if split == "train" else self.card["heldout"]["records"])

    def row(self, i: int, split: str = "train") -> Row:
        """Row i of a split."""
        if not 0 <= i < self.sequences(split):
            raise InputError("no such sequence", where=self.path, found=i, allowed=f"0 to {self.sequences(split) - 1} ({split})")
        row: Row = self.file(row_path(self.path, split, i)).row(i % ROWS_PER_FILE)
        return row

    def held_out(self, source: str) -> range:
        """The held-out rows of a source; they hold nothing else."""
        found = self.card["sources"][source].get("heldout")
        return range(*found["rows"]) if found else range(0)

    def record(self, span: Span) -> Record:
        """The record behind a span, without payloads; of a source with two datasets, each image as its loss bit selects it."""
        record: Record = self._record(span.dataset, span.shard, span.row)
        target = self.card["sources"][self.sources[span.source]].get("target")
        return record if target is None else dual.shown(record, self._record(target, span.shard, span.row), span)

    def latent_stats(self, key: str = "stats") -> tuple[int, NDArray[Any], NDArray[Any]] | None:
        """(n, mean, variance) that latents are normalised by: [C] each, or [tokens, C] by position. None for a plan without images, or whose
        images are trained on as they are stored. n is 0 where nobody knows it, as of an imported statistic. `target_stats` are those of images
        with loss in a plan of two encoders."""
        entry = self.card["encoding"].get(key)
        if entry is None:
            return None
        n, mean, m2 = latent_stats.read(self.path, entry)
        return n, mean, m2 / max(n, 1)

    def __reduce__(self) -> tuple[Any, ...]:
        return Plan, (self.path, self.card)  # mapped files and caches do not travel between processes

    def _read_record(self, dataset: int, shard: int, row: int) -> Record:
        return record_of(self._tables(dataset, shard).slice(row, 1).to_pylist()[0])
