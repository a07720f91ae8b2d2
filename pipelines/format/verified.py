"""Local files checked against their sha256, each once: at first open, and again when size, time of change or inode are others than then.

In: a path and the hash that a card or table gives. Out: nothing, or a VerifyError. The memory is the process's; hashing costs 0.6 s a GiB of one
processor where it has instructions for it, three times that where not.
"""

from __future__ import annotations

import hashlib
import os
from threading import Lock

from pipelines.format import storage
from pipelines.format.errors import VerifyError, told

_seen: dict[tuple[str, str], tuple[int, int, int]] = {}
_lock = Lock()
_BLOCK = 8 << 20


def once(path: str, sha256: str) -> None:
    """Raise VerifyError when the local file at `path` does not have this hash. A file that was found right is not read again."""
    place = str(storage.local(path))
    with told(place):
        state = os.stat(place)
    now = (state.st_size, state.st_mtime_ns, state.st_ino)
    if _seen.get((place, sha256)) == now:
        return
    digest, view = hashlib.sha256(), storage.map_file(path)
    for start in range(0, len(view), _BLOCK):
        digest.update(view[start : start + _BLOCK])
    if digest.hexdigest() != sha256:
        raise VerifyError("a file differs from what its dataset says of it", where=place, found=digest.hexdigest()[:16], allowed=sha256[:16],
                          next="copy it anew, or make the dataset again; pipelines verify --deep finds all such files")  # fmt: skip
    with _lock:
        _seen[place, sha256] = now
