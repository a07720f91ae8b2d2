"""Latent statistics of a dataset from those of its parts, by channel and by position, exact whatever the order and the number of workers.

In: commit records. By channel the moments stand there; by position they are megabytes and lie beside (`encode/part_moments.py`). Out: both merged in
part order and published as `stats-<hash>.parquet` and `stats-position-<hash>.parquet`. A part's moments take 20 ms to read and merge, so what is more
than a run of parts goes through the job, a run to a worker; runs hold a power of two of them, and so the tree of merges, and every bit, is the
same as without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from encode.part_moments import moments_of, where_from
from pipelines.format import moments
from pipelines.format.dataset import Dataset
from pipelines.format.moments import BLOCK_ROWS, Moments, joined, publish
from pipelines.stage import Job, Step

__all__ = ["BLOCK_ROWS", "Moments", "Statistics", "carried", "merge", "merge_parts", "publish"]
READERS = 4  # files of moments read ahead; each is megabytes
RUN, RUNS = 64, 64  # parts in a run, at least; runs at most, since the driver holds the moments of every one


@dataclass(frozen=True)
class Statistics:
    """Of one dataset: by channel, and by position where every part has them."""

    channel: Moments
    position: Moments | None

    def publish(self, root: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """(the card's `encoding.stats`, entries of the files it names)."""
        said, file = publish(root, self.channel)
        if self.position is None:
            return said, [file]
        more, other = publish(root, self.position)
        return {**said, "position": more}, [file, other]


def merge(parts: Iterable[tuple[int, Moments]]) -> Moments | None:
    """(part number, moments) in any order -> the moments of all, the same to the last bit: they are merged in part order."""
    return joined(some for _, some in sorted(parts, key=lambda p: p[0]))


def merge_parts(root: str, commits: Callable[[], Iterator[dict[str, Any]]], job: Job) -> tuple[Statistics | None, list[str]]:
    """Statistics of all parts of the dataset at `root` in part order, and the fingerprints of the encoders that made them."""
    parts: list[tuple[int, Moments]] = []
    places: dict[int, dict[str, Any]] = {}
    seen: set[str] = set()
    for commit in commits():
        stats = commit["stats"] or {}
        if "latents" in stats:
            parts.append((commit["part"], Moments.from_json(stats["latents"])))
            places[commit["part"]] = where_from(commit)
            seen.add(stats["encoder"])
    channel = merge(parts)
    if channel is None:
        return None, sorted(seen)
    return Statistics(channel, _by_position(root, [places[part] for part in sorted(places)], job)), sorted(seen)


def _by_position(root: str, places: list[dict[str, Any]], job: Job) -> Moments | None:
    size = RUN
    while size * RUNS < len(places):
        size *= 2
    runs = [{"run": k, "places": places[k : k + size]} for k in range(0, len(places), size)]
    one = len(runs) == 1
    found = dict(merge_run(run, root) for run in runs) if one else dict(job.map([Step(merge_run, {"root": root}, name="merge")], runs))
    there = [(run, Moments(*some)) for run, some in found.items() if some is not None]
    return merge(there) if len(there) == len(runs) else None


def merge_run(item: dict[str, Any], root: str) -> tuple[int, tuple[Any, ...] | None]:
    """(number of the run, n, mean and m2 of its parts together); None where one of them has none."""
    lacks: list[int] = []

    def there() -> Iterator[Moments]:
        for k, some in enumerate(_read(root, item["places"])):
            if some is None:
                lacks.append(k)
                return
            yield some

    whole = joined(there())
    return item["run"], None if lacks or whole is None else (whole.n, whole.mean, whole.m2)


def _read(root: str, places: list[dict[str, Any]]) -> Iterator[Moments | None]:
    """The moments of some parts in their order, a few read ahead."""
    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(places), READERS):
            yield from pool.map(lambda place: moments_of(root, place), places[first : first + READERS])


def carried(other: Dataset) -> Statistics | None:
    """Those of another dataset, whose latents are pointed at."""
    said = (other.encoding or {}).get("stats")
    if not said:
        return None
    return Statistics(moments.read(other.path, said), moments.read(other.path, said, "position") if "position" in said else None)
