"""Parts → a dataset: what is skipped, what is run, what is counted, and the card at the end. Every stage that writes a dataset comes through here.

    parts ──committed already? skip──▶ job.map(chain) ──▶ commit records ──▶ shard table ──▶ card

A part is done when its commit record has the same fingerprint and the files it names are there with their sizes (and, with `verify`, their
hashes); anything else is redone. That is decided before Ray is started, so a job with nothing to do costs one listing. The card is written
last, and only by a job of the same recipe.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipelines.format import storage
from pipelines.format.document import Document, fingerprint, sha256_hex
from pipelines.format.errors import ErrorBudgetSpent, Stopped
from pipelines.format.manifest import card, dataset_fingerprint, file_entry, publish_card, refuse_other_recipe
from pipelines.format.part import FORMAT, commit_path, net
from pipelines.format.shard import Shard, shard_table
from pipelines.format.storage import join
from pipelines.progress import Progress
from pipelines.stage import Job, Step, together

# What may change without the bytes changing: where the output lies, what runs it, and how it is run.
UNHASHED = ("output", "resources", "engine", "error_budget", "retry", "keep_dropped")


class ErrorBudget(Document):
    """When unexpected exceptions stop a job: more than `share` of the last `window` records, or `in_a_row` without one that worked."""

    share: float = 0.5
    window: int = 1_000
    in_a_row: int = 100

    def watch(self) -> Watch:
        """A fresh counter for one part."""
        return Watch(self)


@dataclass
class Watch:
    """Sees each record's fate in order and raises when the budget is spent."""

    budget: ErrorBudget
    recent: deque[bool] = field(default_factory=deque)
    row: int = 0

    def saw(self, error: str | None) -> None:
        """`error` is what went wrong with a record, None when nothing did."""
        self.row = self.row + 1 if error else 0
        self.recent.append(bool(error))
        if len(self.recent) > self.budget.window:
            self.recent.popleft()
        bad = sum(self.recent) if error else 0
        if self.row >= self.budget.in_a_row or (len(self.recent) >= self.budget.window and bad > self.budget.share * self.budget.window):
            raise ErrorBudgetSpent(
                "too many records failed unexpectedly",
                found=f"{bad} of the last {len(self.recent)}, the last: {error}",
                allowed=f"{self.budget.share:.0%} of {self.budget.window}, or {self.budget.in_a_row} in a row",
                next="look at the error above; raise `error_budget` only if it is expected",
            )


def recipe_fingerprint(stage: str, recipe: dict[str, Any], versions: dict[str, int]) -> str:
    """What was asked for, apart from where it goes and what runs it."""
    kept = {k: v for k, v in recipe.items() if k not in UNHASHED}
    return fingerprint({"format": FORMAT, "stage": stage, "recipe": kept, "versions": versions})


def part_fingerprint(recipe: str, spec: dict[str, Any], inputs: list[Any]) -> str:
    """What one part is made of: the recipe, the part of the source, and the files behind it."""
    return fingerprint({"recipe": recipe, "spec": spec, "inputs": inputs})


@dataclass(frozen=True)
class Build:
    """One dataset to be made. `parts` are items for the chain, each with "part" and "fingerprint"; its last step returns the commit record.
    An artifact of another `kind` has no shard table: what `extras` gives says its files and its `fingerprint`.

    A chain that must look at the cluster first is a function, called when there is work. `extras(commits)` gives the card what only the finished
    whole knows (encoding, statistics); it may publish files of its own.
    """

    output: str
    name: str
    data: str
    recipe: dict[str, Any]
    fingerprint: str
    parts: list[dict[str, Any]]
    chain: list[Step] | Callable[[], list[Step]]
    parents: list[dict[str, str]] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    extras: Callable[[Callable[[], Iterator[dict[str, Any]]]], dict[str, Any]] | None = None
    verify: bool = False
    kind: str = "dataset"
    beside: tuple[Build, ...] = ()  # other datasets that the same chain writes, part by part: a part is done when it is done in all of them


def build(job: Job, b: Build) -> str:
    """Run what is missing and seal the dataset. Returns its path; raises Stopped, ErrorBudgetSpent, ConflictError and the steps' own errors."""
    return seal(b, changed=commit_parts(job, b))


def commit_parts(job: Job, b: Build) -> bool:
    """Run what is missing and leave the card as it is. Returns whether anything was."""
    for each in (b, *b.beside):
        refuse_other_recipe(each.output, "manifest.json", each.fingerprint)
    done = set.intersection(*(_committed(each) for each in (b, *b.beside)))
    todo = [p for p in b.parts if p["part"] not in done]
    job.log("start", output=b.output, parts=len(b.parts), todo=len(todo))
    if todo:
        _run(job, b, todo, len(done))
    if job.stop.is_set():
        raise Stopped("stopped before the card was written")
    return bool(todo)


def complete(b: Build) -> bool:
    """Whether every part is committed as it should be, so that there is nothing to run."""
    return len(_committed(b)) == len(b.parts)


def _run(job: Job, b: Build, todo: list[dict[str, Any]], skipped: int) -> None:
    began, outcome = time.monotonic(), Counter[str]()
    with Progress(b.name, total=len(b.parts), done=skipped) as bar:
        for summary in job.map(_summing(b.chain() if callable(b.chain) else b.chain), todo):
            outcome["in"] += summary["in"]
            outcome["written"] += summary["written"]
            for reason, n in {**summary["filtered"], **summary["rejected"]}.items():
                outcome[reason] += n
            bar.advance(summary, outcome)
            job.log("part", **summary)
    job.log("ran", seconds=round(time.monotonic() - began, 3), **outcome)


def _summing(chain: list[Step]) -> list[Step]:
    """The chain, with summaries for commit records at its end: in the worker that committed, whatever it is."""
    *before, last = chain
    if isinstance(last.fn, type):
        return [*before, together([last, Step(_summary, cpus=0)], last.name)]
    return [*chain, Step(_summary, cpus=last.cpus)]


def _summary(commit: dict[str, Any]) -> dict[str, Any]:
    """What the driver keeps of a commit record, and what it has to tell; the rest stays on disk."""
    notes = (commit["stats"] or {}).get("notes")
    return {k: commit[k] for k in ("part", "in", "written", "filtered", "rejected", "tokens")} | ({"notes": notes} if notes else {})


def _committed(b: Build) -> set[int]:
    """The parts that need no work. Commit records of other inputs are removed, so that their parts can be committed anew."""
    if not storage.exists(join(b.output, "parts")):
        return set()
    there = {path: size for path, size, _ in storage.listing(b.output)}
    wanted = {p["part"]: p["fingerprint"] for p in b.parts}
    has = [n for n in wanted if f"parts/{n:05d}.json" in there]
    done = set()
    for n, commit in zip(has, read_commits(b.output, has), strict=True):
        if commit["fingerprint"] == wanted[n] and all(_intact(b, f, there) for f in commit["files"]):
            done.add(n)
        else:
            storage.delete(commit_path(b.output, n))
    return done


def _intact(b: Build, file: dict[str, Any], there: dict[str, int]) -> bool:
    if there.get(file["path"]) != file["bytes"]:
        return False
    return not b.verify or sha256_hex(storage.read(join(b.output, file["path"]))) == file["sha256"]


def read_commits(root: str, parts: list[int]) -> Iterator[dict[str, Any]]:
    """The commit records of these parts, in that order."""
    with ThreadPoolExecutor(16) as pool:  # small files: latency, not bandwidth, is what an object store charges
        yield from pool.map(lambda n: storage.read_json(commit_path(root, n)), parts)


def seal(b: Build, changed: bool = True) -> str:
    """Write the shard table and, last, the card. With nothing changed and the card there, nothing is written."""
    numbers = [p["part"] for p in b.parts]
    _clear(b.output, set(numbers))
    wanted = fingerprint([p["fingerprint"] for p in b.parts])
    path = join(b.output, "manifest.json")
    old = storage.read_json(path) if storage.exists(path) else None
    if old and not changed and old.get("parts", {}).get("fingerprint") == wanted:
        return b.output

    def commits() -> Iterator[dict[str, Any]]:
        return read_commits(b.output, numbers)

    totals, shards = _total(commits())
    extras = b.extras(commits) if b.extras else {}
    extras = _with_shards(b.output, shards, extras) if b.kind == "dataset" else extras
    extras["files"] = [*extras.get("files", []), *(e for e in (old or {}).get("files", []) if e["path"].startswith("tombstones-"))]
    whole = card(
        b.kind,
        b.name,
        extras.pop("fingerprint"),
        b.recipe,
        parents=b.parents,
        stages=b.versions,
        data=b.data,
        recipe_fingerprint=b.fingerprint,
        parts={"n": len(numbers), "fingerprint": wanted},
        **totals,
        **extras,
        **{key: old[key] for key in ("tombstones", "erased") if old and key in old},  # what was forgotten stays forgotten
    )
    if old and old["fingerprint"] != whole["fingerprint"]:  # both are snapshots that plans may pin, today's and tomorrow's
        for one in (old, whole):
            publish_card(b.output, f"manifest-{one['fingerprint'][:16]}.json", one)
    publish_card(b.output, "manifest.json", whole, b.fingerprint)
    return b.output


def _with_shards(root: str, shards: list[Shard], extras: dict[str, Any]) -> dict[str, Any]:
    """The extras of a dataset's card, with its shard table and its fingerprint."""
    table = shard_table(shards)
    entry = file_entry(root, f"shards-{sha256_hex(table)[:16]}.parquet", table)
    named = {"file": entry["path"], "sha256": entry["sha256"], "n": len(shards)}
    print_ = dataset_fingerprint(extras.get("encoding"), shards)
    return {**extras, "fingerprint": print_, "shards": named, "files": [entry, *extras.get("files", [])]}


def _clear(output: str, numbers: set[int]) -> None:
    """Remove commit records of parts that the source has no more; what they name stays while a snapshot does."""
    folder = join(output, "parts")
    there = storage.listing(folder, (".json",)) if storage.exists(folder) else []
    for number in sorted({int(name.removesuffix(".json")) for name, _, _ in there} - numbers):
        storage.delete(commit_path(output, number))


def _total(commits: Iterator[dict[str, Any]]) -> tuple[dict[str, Any], list[Shard]]:
    counts: Counter[str] = Counter()
    tokens: Counter[str] = Counter({"text": 0, "visual": 0, "loss": 0, "all": 0})
    filtered: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    sources: dict[str, Counter[str]] = {}
    shards: list[Shard] = []
    for c in commits:
        netted = net(c)
        counts.update({"in": netted["in"], "written": c["written"], "bytes": sum(f["bytes"] for f in c["files"])})
        tokens.update(c["tokens"])
        filtered.update(c["filtered"])
        rejected.update(netted["rejected"])
        for name, s in c["sources"].items():
            sources.setdefault(name, Counter()).update(s)
        shards += [Shard(**s) for s in c["shards"]]
    assert counts["in"] == counts["written"] + filtered.total() + rejected.total(), "a record was lost between parts and card"
    per_source = {
        name: {"records": s["records"], "tokens": {k: s[k] for k in ("text", "visual", "loss", "all")}} for name, s in sorted(sources.items())
    }
    facts = {"records": counts["written"], "bytes": counts["bytes"], "in": counts["in"], "written": counts["written"], "tokens": dict(tokens)}
    return {**facts, "filtered": dict(sorted(filtered.items())), "rejected": dict(sorted((+rejected).items())), "sources": per_source}, shards
