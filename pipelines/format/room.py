"""The bound of a cache folder that several processes fill: an account, and eviction of what was used longest ago.

The account is a number in a file, changed under a lock that its holder's death releases, so the folder never holds more than its limit; when it says
that there is no room, the folder is counted anew (files that others removed, files of the dead). Times of use lie in atime, set explicitly: a mount
with `noatime` does not matter, and mtime stays what it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

FILL = 0.9  # of the limit: what an eviction leaves, so that the next one is not at once
STALE_SECONDS = 3600  # after which an unfinished file is somebody's who died
OWN = ("lock", "used")


class Room:
    """Bytes in a folder of folders of files, at most `limit`."""

    def __init__(self, folder: str, limit: int) -> None:
        self.folder, self.limit = folder, limit

    @contextlib.contextmanager
    def booked(self, size: int) -> Iterator[bool]:
        """Room for `size` bytes that the block then fills, others waiting. Yields whether files had to go for it."""
        with locked(os.path.join(self.folder, "lock")):
            fd = os.open(os.path.join(self.folder, "used"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                said = os.read(fd, 32).strip()
                used = int(said) if said.isdigit() else self.used()
                full = used + size > self.limit
                if full:
                    used = self._evict(max(int(self.limit * FILL) - size, 0))
                os.ftruncate(fd, 0)
                os.pwrite(fd, str(used + size).encode(), 0)
            finally:
                os.close(fd)
            yield full

    def used(self) -> int:
        """Bytes that lie there now, counted."""
        return sum(size for _, size, _ in self._scan())

    def _evict(self, leave: int) -> int:
        """Remove the least recently used until `leave` bytes are left; returns what is left."""
        found = sorted(self._scan())
        used = sum(size for _, size, _ in found)
        for _, size, path in found:
            if used <= leave:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            used -= size
        return used

    def _scan(self) -> Iterator[tuple[int, int, str]]:
        """(time of last use, bytes, path) of every file; unfinished ones of the dead are removed."""
        old = time.time() - STALE_SECONDS
        for top in os.scandir(self.folder):
            with contextlib.suppress(OSError):
                if top.name.startswith("tmp-") and top.stat().st_mtime < old:
                    os.unlink(top.path)
                elif top.is_dir(follow_symlinks=False):
                    for entry in os.scandir(top.path):
                        if entry.name not in OWN:
                            state = entry.stat()
                            yield state.st_atime_ns, state.st_size, entry.path


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """A lock between threads and processes of a machine."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
