"""Files that were found to be what their table says: each is hashed once at its first use on a machine, not once a process.

In: a local file, its size and its sha256. Out: nothing, or a VerifyError. Remembered by (path, bytes, mtime, inode) in this process and, as one
small file each, in the user's cache (`$HEADWATER_CACHE`, else `$XDG_CACHE_HOME/headwater`, else `~/.cache/headwater`), so that a job of a hundred
processes hashes a shard once and a resumed one reads its first sample at once. A file that is written to has another mtime and is hashed again;
what rots on the disk without that is for `pipelines verify`, which remembers nothing. Where no cache can be written, each process hashes for
itself. Costs: 0.7 s a GB the first time (SHA-NI), 20 µs ever after.
"""

from __future__ import annotations

import contextlib
import os
from hashlib import sha256

from pipelines.format import storage
from pipelines.format.document import canon, sha256_hex
from pipelines.format.errors import HeadwaterError, VerifyError, told

_BLOCK = 16 << 20
_seen: set[str] = set()


def verify_once(path: str, nbytes: int, digest: str) -> None:
    """Raise VerifyError unless the local file at `path` has these bytes and this sha256."""
    where = str(storage.local(path))
    with told(path):
        stat = os.stat(where)
    if stat.st_size != nbytes:
        raise VerifyError("a file has another length than its table says", where=path, found=stat.st_size, allowed=nbytes, next=_NEXT)
    key = sha256_hex(canon([os.path.abspath(where), nbytes, stat.st_mtime_ns, stat.st_ino, digest]))
    if key in _seen:
        return
    note = storage.join(cache_folder(), "verified", key[:2], key)
    if not os.path.exists(note):
        found = _sha256(where)
        if found != digest:
            raise VerifyError("a file differs from what its table says", where=path, found=found, allowed=digest, next=_NEXT)
        with contextlib.suppress(HeadwaterError, OSError):  # a read-only home costs time, not the job
            storage.publish(note, digest.encode(), scratch=cache_folder())
    _seen.add(key)


_NEXT = "pipelines verify on the folder of this file says what else is wrong; restore it from a copy or make it again"


def cache_folder() -> str:
    """Where notes of verified files lie."""
    given = os.environ.get("HEADWATER_CACHE")
    return given or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "headwater")


def _sha256(path: str) -> str:
    done = sha256()
    buffer = memoryview(bytearray(_BLOCK))
    with told(path), open(path, "rb", buffering=0) as f:
        while n := f.readinto(buffer):
            done.update(buffer[:n])
    return done.hexdigest()
