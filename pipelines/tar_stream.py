"""A tar file as a stream of members. Nothing is ever extracted, and only regular files with plain names get through.

What comes in: a binary stream, plain or unpacked by `bounded.opened`. What goes out: (name, content) in order; a member that is a link, a device or
sparse, names a path outside, is named twice or is too large comes as a `Reject` instead and is passed over. Python's own tarfile has let
hostile archives through its filter four times since 2025, so the format's 512-byte headers are read here: ustar, GNU long names and the
`path` and `size` of PAX headers, each with a limit. An archive that stops without its end mark is told apart from a whole one.

Members that memory should not hold, films, come as open files: written piece by piece to unnamed scratch space that goes when they are closed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from typing import IO, cast

import numpy as np

from pipelines.format.errors import Reject, told

MAX_MEMBER = 256 << 20
MAX_LARGE = 64 << 30  # of scratch space
MAX_HEADER = 64 << 10  # bytes of a PAX or long-name header
MAX_NAME = 255
MAX_MEMBERS = 10_000_000
_BLOCK = 512
_FRESH = 50_000  # names kept apart until they are sorted in


def members(stream: IO[bytes], wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes | Reject]]:
    """(name, content) of members whose lower-case name ends in `wanted`, or (name, Reject). Raises `Reject` where the archive itself ends badly."""
    yield from cast(Iterator[tuple[str, bytes | Reject]], large_members(stream, wanted, ()))


def large_members(
    stream: IO[bytes], wanted: tuple[str, ...], large: tuple[str, ...], folder: str | None = None
) -> Iterator[tuple[str, bytes | IO[bytes] | Reject]]:
    """The same, and members whose name ends in `large` as open files of their own, rewound; whoever takes one closes it. `folder` is where
    there is room for them (default: below TMPDIR)."""
    for name, kind, size, problem in _heads(stream, large):
        if problem is None and name.lower().endswith(large):
            yield name, _spooled(stream, size, name, folder)
            continue
        if problem is None and name.lower().endswith(wanted):
            yield name, _exactly(stream, _padded(size), f"in {name}")[:size]
            continue
        if kind != b"5" and problem is not None:  # folders are neither wanted nor suspicious
            yield name, problem
        _skip(stream, _stored(kind, size), name)


def places(stream: IO[bytes], wanted: tuple[str, ...]) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the members that `members` would give, of a plain tar in a seekable stream: headers are read, contents passed over.
    Raises `Reject` where the archive ends badly."""
    end = stream.seek(0, 2)
    stream.seek(0)
    for name, kind, size, problem in _heads(stream, ()):
        at = stream.tell()
        if at + _stored(kind, size) > end:
            raise Reject("truncated", f"the archive stops in {name}")
        if problem is None and name.lower().endswith(wanted):
            yield name, at, size
        stream.seek(at + _stored(kind, size))


def _heads(stream: IO[bytes], large: tuple[str, ...]) -> Iterator[tuple[str, bytes, int, Reject | None]]:
    """(name, kind, size, what speaks against it) of each member; whoever asks for the next has taken the content from the stream."""
    seen = _Names()
    extra: dict[str, str] = {}
    for _ in range(MAX_MEMBERS):
        header = _exactly(stream, _BLOCK, "without its end mark")
        if not any(header):
            return
        if _number(header[148:156]) != sum(header[:148]) + 8 * 32 + sum(header[156:]):
            raise Reject("unreadable", "not a tar header: the checksum differs")
        kind = header[156:157]
        size = int(extra.get("size", _number(header[124:136])))
        if kind in (b"x", b"g", b"L", b"K"):
            text = _exactly(stream, _padded(_limited(size)), "in a header")[:size]
            extra |= _pax(text) if kind == b"x" else {"path": _text(text)} if kind == b"L" else {}
            continue
        name = extra.get("path") or _name(header)
        told, extra = b"S" if "sparse" in extra else kind, {}
        yield name, kind, size, _problem(name, told, size, seen.has(name), MAX_LARGE if name.lower().endswith(large) else MAX_MEMBER)
    raise Reject("too_large", f"more than {MAX_MEMBERS} members")


def _stored(kind: bytes, size: int) -> int:
    """The bytes a member's content takes; links, devices and folders have none, whatever their header says."""
    return 0 if kind in (b"1", b"2", b"3", b"4", b"5", b"6") else _padded(size)


def _problem(name: str, kind: bytes, size: int, met: bool, most: int) -> Reject | None:
    if kind not in (b"0", b"\0", b"7"):
        return Reject("not_allowed", "a link, device, sparse or other special member")
    if name.startswith("/") or ".." in name.split("/") or "\0" in name or "\\" in name or len(name.encode()) > MAX_NAME:
        return Reject("not_allowed", "an absolute, outward or overlong name")
    if met:
        return Reject("not_allowed", "a name that an earlier member has")
    if size > most:
        return Reject("too_large", f"{size} bytes, allowed {most}")
    return None


class _Names:
    """The names met so far, as sorted hashes of eight bytes: ten million of them as texts would take a gigabyte."""

    def __init__(self) -> None:
        self._old, self._new = np.empty(0, np.uint64), set[int]()

    def has(self, name: str) -> bool:
        """Whether a member of this name was met; from now on it was."""
        h = int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        place = int(np.searchsorted(self._old, np.uint64(h)))
        if h in self._new or (place < len(self._old) and int(self._old[place]) == h):
            return True
        self._new.add(h)
        if len(self._new) >= _FRESH:
            self._old = np.sort(np.concatenate([self._old, np.fromiter(self._new, np.uint64, len(self._new))]), kind="stable")
            self._new.clear()
        return False


def _name(header: bytes) -> str:
    prefix = _text(header[345:500]) if header[257:262] == b"ustar" and header[262:263] != b" " else ""
    name = _text(header[:100])
    return f"{prefix}/{name}" if prefix else name


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", errors="replace").removeprefix("./")


def _number(field: bytes) -> int:
    if field[:1] == b"\x80":  # GNU's form of sizes from 8 GiB on
        return int.from_bytes(field[1:], "big")
    try:
        value = int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise Reject("unreadable", "not a tar header: a number is none") from None
    if value < 0:
        raise Reject("unreadable", "not a tar header: a negative number")
    return value


def _pax(data: bytes) -> dict[str, str]:
    out = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length[:8]) <= len(data):
            raise Reject("unreadable", "a PAX header that does not add up")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            out["path"] = value.decode("utf-8", errors="replace").removeprefix("./")
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise Reject("unreadable", "a PAX size that is no number")
            out["size"] = value.decode()
        elif key.startswith(b"GNU.sparse"):
            out["sparse"] = "1"  # the content is not what the name says
        data = data[int(length) :]
    return out


def _limited(size: int) -> int:
    if size > MAX_HEADER:
        raise Reject("too_large", f"a tar header of {size} bytes")
    return size


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _exactly(stream: IO[bytes], size: int, where: str) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise Reject("truncated", f"the archive stops {where}")
    return data


def _spooled(stream: IO[bytes], size: int, name: str, folder: str | None) -> IO[bytes]:
    with told(folder or "scratch space"):
        if folder is not None:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        out = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the taker closes it
    try:
        left = _padded(size)
        while left > 0:
            piece = _exactly(stream, min(left, 8 << 20), f"in {name}")
            with told(folder or "scratch space"):
                out.write(piece)
            left -= len(piece)
        with told(folder or "scratch space"):
            out.truncate(size)
            out.seek(0)
    except BaseException:
        out.close()
        raise
    return out


def _skip(stream: IO[bytes], size: int, name: str) -> None:
    while size > 0:
        size -= len(_exactly(stream, min(size, 1 << 20), f"in {name}"))
