"""From a folder to units of work: a pure function of the listing sorted by path bytes, so that the same files give the same parts anywhere.

Folders of files become greedy runs to 256 MiB or 1,000 files (an episode is never split), one large plain file becomes byte ranges (a line
belongs where its first byte lies), a compressed file stays whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.format import storage
from pipelines.format.errors import InputError

PART_BYTES = 256 << 20
PART_FILES = 1_000


@dataclass(frozen=True, slots=True)
class Input:
    """One file of a source: posix path relative to the source's root, bytes, and a tag that changes when the file does."""

    path: str
    bytes: int
    tag: str

    def as_list(self) -> list[Any]:
        """The form that enters a part's fingerprint."""
        return [self.path, self.bytes, self.tag]


def list_files(path: str, suffixes: tuple[str, ...] | None = None) -> list[Input]:
    """The files below `path` (or the one file it is) with these lower-case suffixes, sorted by path bytes. None found is an error."""
    found = [Input(*f) for f in storage.listing(path, suffixes)]
    if not found:
        raise InputError("nothing to read here", where=path, allowed=", ".join(suffixes) if suffixes else "any file")
    return found


def place(root: str, rel: str) -> str:
    """The full path of a listed file: the root itself when the root is that one file."""
    return root if root.rsplit("/", 1)[-1] == rel and _is_file(root) else storage.join(root, rel)


def _is_file(path: str) -> bool:
    return storage.local(path).is_file() if storage.is_local(path) else not path.endswith("/") and storage.exists(path)


def runs(
    inputs: list[Input], max_bytes: int = PART_BYTES, max_files: int = PART_FILES, group: Callable[[Input], str] | None = None
) -> list[list[Input]]:
    """Greedy runs of neighbouring files up to these limits; files of one `group` stay in one run."""
    groups: list[list[Input]] = []
    last: str | None = None
    for item in inputs:
        name = group(item) if group else None
        if groups and name is not None and name == last:
            groups[-1].append(item)
        else:
            groups.append([item])
        last = name
    out: list[list[Input]] = []
    for g in groups:
        fits = out and sum(i.bytes for i in out[-1] + g) <= max_bytes and len(out[-1]) + len(g) <= max_files
        if fits:
            out[-1].extend(g)
        else:
            out.append(list(g))
    return out


def byte_ranges(item: Input, step: int = PART_BYTES) -> list[tuple[int, int]]:
    """[start, stop) ranges of a plain file; an empty file is one empty range."""
    return [(a, min(a + step, item.bytes)) for a in range(0, item.bytes, step)] or [(0, 0)]
