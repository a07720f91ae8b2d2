"""Local files checked against their sha256, each once a machine: at first use, and again when size, time of change or inode are others than then.

In: a path and the hash that a card or table gives. Out: nothing, or a VerifyError. Remembered in this process and, as one small file each, in the
user's cache (`$HEADWATER_CACHE`, else `$XDG_CACHE_HOME/headwater`, else `~/.cache/headwater`), so that a job of a hundred processes hashes a shard
once and a resumed one has its first sample at once. What rots on the disk without a new time of change is for `pipelines verify`, which remembers
nothing. Where no cache can be written, each process hashes for itself. Hashing costs 0.7 s a GB of one processor where it has instructions for it,
three times that where not; a file known to be right costs 30 µs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os

from pipelines.format import storage
from pipelines.format.document import canon, sha256_hex
from pipelines.format.errors import HeadwaterError, VerifyError, told

_seen: set[str] = set()
_BLOCK = 8 << 20
_NEXT = "copy it anew, or make the dataset again; pipelines verify --deep finds all such files"


def once(path: str, sha256: str, nbytes: int | None = None) -> None:
    """Raise VerifyError when the local file at `path` does not have this hash (or length). A file that was found right is not read again."""
    place = os.path.abspath(storage.local(path))
    with told(place):
        stat = os.stat(place)
    if nbytes is not None and stat.st_size != nbytes:
        raise VerifyError("a file has another length than its dataset says", where=place, found=stat.st_size, allowed=nbytes, next=_NEXT)
    key = sha256_hex(canon([place, stat.st_size, stat.st_mtime_ns, stat.st_ino, sha256]))
    if key in _seen:
        return
    note = storage.join(cache_folder(), "verified", key[:2], key)
    if not os.path.exists(note):
        digest, view = hashlib.sha256(), storage.map_file(place)
        for start in range(0, len(view), _BLOCK):
            digest.update(view[start : start + _BLOCK])
        if digest.hexdigest() != sha256:
            found = digest.hexdigest()[:16]
            raise VerifyError("a file differs from what its dataset says of it", where=place, found=found, allowed=sha256[:16], next=_NEXT)
        with contextlib.suppress(HeadwaterError, OSError):  # a home that cannot be written costs time, not the job
            storage.publish(note, sha256.encode(), scratch=cache_folder())
    _seen.add(key)


def cache_folder() -> str:
    """Where notes of verified files lie."""
    given = os.environ.get("HEADWATER_CACHE")
    return given or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "headwater")
