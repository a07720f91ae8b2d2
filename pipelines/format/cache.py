"""A folder of pieces of remote files, shared by the processes of a machine: bounded, and no byte of it believed unseen.

    <folder>/<file>/<crc32>-<hash>     a haul: what one fetch brought of one remote file (pipelines/format/haul.py)
    <folder>/<file>/lock               held by who fetches of that file, so that it is fetched once
    <folder>/lock, used, tmp-*         the account of the whole (pipelines/format/room.py), and hauls that are being written

`<file>` is a hash of the remote file's path and content hash. Not chunks of a grid, because plans read runs of 4 MB and more of a shard: what is
kept is what was asked for. Published by rename, so a haul is whole or not there; no fsync, since its checksum is computed again at the first open
in each process, and whenever size, time of change or inode have become others. What is found changed is removed, and fetched again by who asks.
Who has a haul mapped keeps it when it is evicted.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from pipelines.format.errors import InputError, told
from pipelines.format.haul import Haul, Pieces, open_checked, packed, read_table
from pipelines.format.room import OWN, Room, locked

MAPS_KEPT = 512  # hauls that a process holds open
LEAST = 1 << 20


class _Mapped(NamedTuple):
    view: memoryview
    seen: tuple[int, int, int]  # size, mtime_ns, inode when it was checked


def default_folder() -> str:
    """HEADWATER_CACHE, or a folder of this user's in the temporary one."""
    return os.environ.get("HEADWATER_CACHE") or os.path.join(tempfile.gettempdir(), f"headwater-cache-{os.getuid()}")


def default_limit(folder: str) -> int:
    """Half of what is free on that disk, at most 64 GiB."""
    disk = os.statvfs(folder)
    return min(64 << 30, disk.f_bavail * disk.f_frsize // 2)


def key_of(path: str, sha256: str | None = None) -> str:
    """The folder name of a remote file. With its content hash, a file that is replaced under its name is another."""
    return blake2b(f"{path}\n{sha256 or ''}".encode(), digest_size=16).hexdigest()


class Cache:
    """Safe between threads and between processes. `limit` in bytes; `damaged` counts hauls that were found changed."""

    def __init__(self, folder: str | None = None, limit: int | None = None) -> None:
        self.folder = folder or default_folder()
        with told(self.folder):
            os.makedirs(self.folder, 0o700, exist_ok=True)
            state = os.lstat(self.folder)
        if state.st_uid != os.getuid() or os.path.islink(self.folder):
            raise InputError("the cache folder belongs to somebody else", where=self.folder, next="name another: cache: {dir: …}")
        self.limit = max(LEAST, limit if limit is not None else default_limit(self.folder))
        self.room = Room(self.folder, self.limit)
        self.damaged = 0
        self._lock = threading.RLock()
        self._known: dict[str, dict[str, Haul]] = {}  # by file and name
        self._maps: OrderedDict[str, _Mapped] = OrderedDict()

    def view(self, key: str, start: int, stop: int) -> memoryview | None:
        """Bytes [start, stop) of a file, checked; None when they are not here (any more, or whole)."""
        if stop <= start:
            return memoryview(b"")
        for look in (False, True):
            with self._lock:
                if look:
                    self._look(key)
                hauls = list(self._known.get(key, {}).values())
            for haul in reversed(hauls):
                if (at := haul.find(start, stop)) >= 0 and (whole := self._open(key, haul)) is not None:
                    return whole[at : at + stop - start]
        return None

    def missing(self, key: str, start: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the ranges [start, stop) are not here. Looks at the folder, not at the bytes."""
        lacking = stop > start
        for look in (False, True):
            with self._lock:
                if look:
                    self._look(key)
                for haul in self._known.get(key, {}).values() if lacking.any() else ():
                    lacking &= ~haul.holds(start, stop)
            if not lacking.any():
                break
        return lacking

    def put(self, key: str, pieces: Pieces) -> None:
        """Publish pieces of a file, (start, bytes) in ascending order; what was least recently used goes when there is no room."""
        name, parts, haul = packed(pieces)
        home, scratch = os.path.join(self.folder, key), os.path.join(self.folder, f"tmp-{uuid4().hex}")
        size = sum(len(part) for part in parts)
        with told(self.folder):
            os.makedirs(self.folder, 0o700, exist_ok=True)  # somebody may have tidied up
            try:
                self._write(scratch, parts)
                with self.room.booked(size) as evicted:
                    os.makedirs(home, 0o700, exist_ok=True)
                    os.rename(scratch, os.path.join(home, name))
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(scratch)
                raise
        with self._lock:
            if evicted:
                self._known.clear()
            self._known.setdefault(key, {})[name] = haul

    def drop(self, key: str, start: int, stop: int) -> None:
        """Remove every haul that holds bytes of [start, stop): they were found wrong."""
        with self._lock:
            self._look(key)
            for haul in list(self._known.get(key, {}).values()):
                if ((haul.start < stop) & (start < haul.stop)).any():
                    self._remove(key, haul.name)

    @contextlib.contextmanager
    def fetching(self, key: str) -> Iterator[None]:
        """Of all threads and processes of the machine, one at a time is inside for this key; it looks again before it fetches."""
        home = os.path.join(self.folder, key)
        with told(home):
            os.makedirs(home, 0o700, exist_ok=True)
        with locked(os.path.join(home, "lock")):
            yield

    def _write(self, path: str, parts: list[bytes | memoryview]) -> None:
        out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for part in parts:
                left = memoryview(part)
                while left:
                    left = left[os.write(out, left) :]
        finally:
            os.close(out)

    def _look(self, key: str) -> None:
        """What lies there now; tables of files that are new are read."""
        known, found = self._known.get(key, {}), {}
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(os.path.join(self.folder, key))):
                if name not in OWN:
                    haul = known.get(name) or read_table(os.path.join(self.folder, key, name))
                    if haul is None:
                        self._remove(key, name)
                    else:
                        found[name] = haul
        self._known[key] = found

    def _open(self, key: str, haul: Haul) -> memoryview | None:
        """A whole haul, checked; None when it is gone, or was changed and is now removed."""
        path = f"{self.folder}/{key}/{haul.name}"
        with self._lock:
            held = self._maps.get(path)
            try:
                state = os.stat(path)
            except FileNotFoundError:
                if held is None:
                    self._known.get(key, {}).pop(haul.name, None)
                return held.view if held is not None else None  # evicted by a neighbour; what is mapped was checked
            seen = (state.st_size, state.st_mtime_ns, state.st_ino)
            if held is not None and held.seen == seen:
                self._maps.move_to_end(path)
                return held.view
        view = open_checked(path)
        with self._lock:
            if view is None:
                self.damaged += os.path.exists(path)
                self._remove(key, haul.name)
                return None
            with contextlib.suppress(OSError):
                os.utime(path, ns=(time.time_ns(), state.st_mtime_ns))
            self._maps[path] = _Mapped(view, seen)
            while len(self._maps) > MAPS_KEPT:
                self._maps.popitem(last=False)
        return view

    def _remove(self, key: str, name: str) -> None:
        path = f"{self.folder}/{key}/{name}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._maps.pop(path, None)
        self._known.get(key, {}).pop(name, None)
