"""A zip file as a run of members. Nothing is ever extracted, and only plain files with plain names get through.

What comes in: a seekable file. What goes out: (name, stream) in the order of its directory; a member that is a link, encrypted, packed in an unusual
way, named like one before it or with a name that leads outside comes as a `Reject` instead. A stream raises `Reject` where its member is
damaged, and where the archive has given more than 300 bytes for each of its own: members may share their bytes, so a small file can hold
petabytes of honest-looking ones. The directory is sized before it is read, since reading takes ten times its bytes of memory.
"""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO

from pipelines.bounded import FREE, MAX_RATIO
from pipelines.format.errors import Reject

MAX_DIRECTORY = 32 << 20  # bytes: some 400,000 members
MAX_NAME = 255
_TAIL = (64 << 10) + 22 + 76  # the longest comment, the end record, the zip64 records before it


def members(raw: IO[bytes], wanted: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes] | Reject]]:
    """(name, stream) of the members whose name is `wanted`, or (name, Reject). A stream is to be read before the next is asked for. Raises `Reject`
    for what is no zip."""
    size = check(raw)
    try:
        archive = zipfile.ZipFile(raw)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as error:
        raise Reject("unreadable", f"not a zip file: {error}"[:200]) from None
    budget = _Budget(max(FREE, MAX_RATIO * size))
    seen: set[str] = set()
    with archive:
        for info in archive.infolist():
            if not info.filename or info.is_dir():  # a name that begins with NUL ends there
                continue
            problem = _problem(info, seen)
            seen.add(info.filename)
            if not wanted(info.filename):
                continue
            if problem is not None:
                yield info.filename, problem
                continue
            try:
                stream = archive.open(info)
            except _DAMAGE as error:
                yield info.filename, Reject("unreadable", f"{type(error).__name__}: {error}"[:200])
                continue
            with stream:
                yield info.filename, io.BufferedReader(_Member(stream, budget), 256 << 10)


_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError, OverflowError)


class _Budget:
    """What an archive may still give."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, n: int) -> None:
        self.left -= n
        if self.left < 0:
            raise Reject("too_large", f"the archive unpacks more than {MAX_RATIO} to 1")


class _Member(io.RawIOBase):
    """A forward-only view of one member."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self._stream, self._budget = stream, budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._stream.read(len(buffer))
        except _DAMAGE as error:
            cut = isinstance(error, EOFError)
            raise Reject("truncated" if cut else "unreadable", f"{type(error).__name__}: {error}"[:200]) from None
        self._budget.take(len(data))
        buffer[: len(data)] = data
        return len(data)


def _problem(info: zipfile.ZipInfo, seen: set[str]) -> Reject | None:
    name, mode = info.filename, info.external_attr >> 16
    if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
        return Reject("not_allowed", "a link or another special member")
    if info.flag_bits & 0x1:
        return Reject("not_allowed", "an encrypted member")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Reject("not_allowed", f"packed by method {info.compress_type}; known: stored, deflate")
    if name.startswith("/") or ".." in name.split("/") or "\0" in name or "\\" in name or len(name.encode("utf-8", "replace")) > MAX_NAME:
        return Reject("not_allowed", "an absolute, outward or overlong name")
    if name in seen:
        return Reject("not_allowed", "a name that an earlier member has")
    return None


def check(raw: IO[bytes]) -> int:
    """The file's size, once its directory is known to be of reasonable size. The end record is the last one there is, as for the reader."""
    size = raw.seek(0, io.SEEK_END)
    raw.seek(max(0, size - _TAIL))
    tail = raw.read(_TAIL)
    at, at64 = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
    if at < 0 or len(tail) < at + 22:
        raise Reject("unreadable", "not a zip file: no end record; it may be cut")
    sizes = [int.from_bytes(tail[at + 12 : at + 16], "little")]
    if at64 >= 0:
        sizes.append(int.from_bytes(tail[at64 + 40 : at64 + 48], "little"))
    known = [n for n in sizes if n != 0xFFFFFFFF]
    if not known or max(known) > MAX_DIRECTORY:
        raise Reject("too_large", f"a directory of {max(known, default=0):,} bytes, allowed {MAX_DIRECTORY:,}")
    raw.seek(0)
    return size
