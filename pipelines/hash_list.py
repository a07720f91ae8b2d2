"""Lists of hashes: what must not come in, named without being shown.

What comes in: a text file with a hash a line, plain, gz or zst. Its length says which it is: 32 hex digits md5, 40 sha1, 64 sha256 of the image
file's bytes, 16 a perceptual hash. A name and a colon may stand before it (`sha256:…`), and anything after white space, a comma or a semicolon,
so exports of block-list tools are read as they are; `#` begins a comment. A line that is none of these is an error with its number: a list that
is half read would let through what it was meant to stop. What goes out: tables that answer whether a digest is listed.

Ten million hashes are read in 8 s and take 160 MB (measured): of a digest 128 bits are kept, which collide by chance once in 10²⁴
look-ups. Whole blocks of lines of one length are taken at once; a block with anything else in it, line by line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.bounded import opened
from pipelines.format.errors import InputError, Reject
from pipelines.format.hamming import Near

KINDS = {16: "phash", 32: "md5", 40: "sha1", 64: "sha256"}
_LINE = re.compile(rb"\s*(?:(?:sha-?256|sha-?1|md5|phash)\s*[:=,]\s*)?([0-9a-fA-F]{16,64})(?=[\s,;]|\Z)", re.IGNORECASE)
_BLOCK = 4 << 20
_KEPT = 16  # bytes of a digest


class Digests:
    """A set of digests, of each the first 16 bytes end to end: sorted by the first eight, then the next."""

    def __init__(self, raw: bytes) -> None:
        pairs = np.frombuffer(raw, ">u8").astype(np.uint64).reshape(-1, 2)
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        self._high, self._low = pairs[order, 0], pairs[order, 1]

    def __len__(self) -> int:
        return len(self._high)

    def __contains__(self, digest: bytes) -> bool:
        high, low = np.frombuffer(digest[:_KEPT], ">u8").astype(np.uint64)
        at = int(np.searchsorted(self._high, high))
        while at < len(self._high) and self._high[at] == high:  # the same first eight bytes: one entry, or a few made so on purpose
            if self._low[at] == low:
                return True
            at += 1
        return False


class HashList(NamedTuple):
    """What some files list: digests by kind, and perceptual hashes with the distance to look within."""

    digests: dict[str, Digests]
    near: Near | None


@lru_cache(maxsize=4)
def hash_list(paths: tuple[str, ...], tags: tuple[str, ...], distance: int) -> HashList:
    """The lists at `paths`, read once in a process. `tags` say which version of the files is meant. Raises `InputError`."""
    found: dict[int, list[bytes]] = {}
    for path in paths:
        for size, raw in _read(path):
            found.setdefault(size, []).append(np.frombuffer(raw, np.uint8).reshape(-1, size)[:, :_KEPT].tobytes())
    if not found:
        raise InputError("these lists hold no hash", where=", ".join(paths), allowed="md5, sha1, sha256 or perceptual hashes in hex, one a line")
    raws = {size: b"".join(found.pop(size)) for size in list(found)}
    phashes = raws.pop(8, None)
    near = Near(np.frombuffer(phashes, ">u8").astype(np.uint64), distance) if phashes is not None else None
    return HashList({KINDS[2 * size]: Digests(raw) for size, raw in raws.items()}, near)


def _read(path: str) -> Iterator[tuple[int, bytes]]:
    """(bytes a hash, hashes end to end) by blocks of lines."""
    number = 0
    try:
        with opened(path) as stream:
            while block := stream.read(_BLOCK):
                block += stream.readline(_BLOCK)
                if number == 0:
                    block = block.removeprefix(b"\xef\xbb\xbf")
                lines = block.count(b"\n") + (not block.endswith(b"\n"))
                whole = _uniform(block, lines)
                yield from [whole] if whole else _by_line(block, path, number)
                number += lines
    except Reject as reject:
        raise InputError("a list of hashes cannot be read", where=path, found=f"{reject.reason}: {reject.detail}") from None


def _uniform(block: bytes, lines: int) -> tuple[int, bytes] | None:
    """The block as hashes end to end, when every line is a hash of one length and nothing else."""
    size = block.find(b"\n") if lines > 1 else len(block.rstrip(b"\n"))
    if size not in KINDS or len(block) + (not block.endswith(b"\n")) != lines * (size + 1):
        return None
    table: NDArray[np.uint8] = np.frombuffer(block.ljust(lines * (size + 1), b"\n"), np.uint8).reshape(lines, size + 1)
    if (table[:, size] != 10).any():
        return None
    try:
        raw = bytes.fromhex(table[:, :size].tobytes().decode("ascii"))
    except ValueError:
        return None
    return (size // 2, raw) if len(raw) == lines * size // 2 else None  # fromhex skips white space, which no hash holds


def _by_line(block: bytes, path: str, number: int) -> Iterator[tuple[int, bytes]]:
    for i, line in enumerate(block.split(b"\n"), number + 1):
        line = line.split(b"#", 1)[0]
        if not line.strip():
            continue
        match = _LINE.match(line)
        if match is None or len(match[1]) not in KINDS:
            raise InputError(
                "this line is no hash",
                where=f"{path}:{i}",
                found=line[:80].decode("utf-8", "replace"),
                allowed="16 (perceptual), 32 (md5), 40 (sha1) or 64 (sha256) hex digits",
            )
        yield len(match[1]) // 2, bytes.fromhex(match[1].decode())
