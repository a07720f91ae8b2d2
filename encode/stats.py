"""Latent statistics of a dataset from those of its parts, by channel and by position, exact whatever the order and the number of workers.

In: the moments of each part's latents *as stored* (after the codec), every distinct payload once, per position and channel. By channel they stand
in the part's commit record; by position they are megabytes (16 bytes for every value of an image: 4.7 MB of 256 x 1,152, under 2 % of a full part)
and lie beside it in `moments/PPPPP-<hash>.parquet`, a file that the commit record names, so that resuming, verify and gc know it. Out: both
merged in part order and published as `stats-<hash>.parquet` and `stats-position-<hash>.parquet`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipelines.format import moments, storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import sha256_hex
from pipelines.format.errors import VerifyError
from pipelines.format.moments import BLOCK_ROWS, Moments, joined, publish
from pipelines.format.part import PartWriter

__all__ = ["BLOCK_ROWS", "Moments", "Statistics", "carried", "commit_stats", "merge", "merge_parts", "publish"]
FOLDER = "moments"
READERS = 4  # files of moments read ahead; each is megabytes


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


def commit_stats(writer: PartWriter, moments_: Moments) -> dict[str, Any]:
    """What a commit record says of its part's latents [tokens, channels]; the moments by position are published beside it."""
    return {"latents": moments_.by_channel().as_json(), "positions": writer.beside(FOLDER, moments.to_parquet(moments_), ".parquet")}


def merge(parts: Iterable[tuple[int, Moments]]) -> Moments | None:
    """(part number, moments) in any order -> the moments of all, the same to the last bit: they are merged in part order."""
    return joined(some for _, some in sorted(parts, key=lambda p: p[0]))


def merge_parts(root: str, commits: Callable[[], Iterator[dict[str, Any]]]) -> tuple[Statistics | None, list[str]]:
    """Statistics of all parts of the dataset at `root` in part order, and the fingerprints of the encoders that made them."""
    parts: list[tuple[int, Moments]] = []
    beside: dict[int, dict[str, Any] | None] = {}
    seen: set[str] = set()
    for commit in commits():
        stats = commit["stats"] or {}
        if "latents" in stats:
            parts.append((commit["part"], Moments.from_json(stats["latents"])))
            beside[commit["part"]] = next((f for f in commit["files"] if f["path"] == stats.get("positions")), None)
            seen.add(stats["encoder"])
    channel = merge(parts)
    if channel is None:
        return None, sorted(seen)
    files = [beside[part] for part in sorted(beside)]
    return Statistics(channel, joined(_read(root, files)) if all(files) else None), sorted(seen)


def _read(root: str, files: list[Any]) -> Iterator[Moments]:
    """The moments of some files in their order, a few read ahead."""
    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(files), READERS):
            yield from pool.map(lambda f: _one(root, f), files[first : first + READERS])


def _one(root: str, file: dict[str, Any]) -> Moments:
    where = storage.join(root, file["path"])
    data = storage.read(where)
    if sha256_hex(data) != file["sha256"]:
        raise VerifyError("the moments of a part differ from its commit record", where=where, next="remove the file and run the job again")
    return moments.from_parquet(data, where)


def carried(other: Dataset) -> Statistics | None:
    """Those of another dataset, whose latents are pointed at."""
    said = (other.encoding or {}).get("stats")
    if not said:
        return None
    return Statistics(moments.read(other.path, said), moments.read(other.path, said, "position") if "position" in said else None)
