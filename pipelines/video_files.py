"""Videos as open files: from a disk as they lie, from an object store as bytes; and the hash that groups what one file gave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

from pipelines.format import storage
from pipelines.format.errors import Reject
from pipelines.listing import place

MAX_REMOTE = 4 << 30  # what is not on a disk is held in memory while it is read


@contextmanager
def video_file(root: str, rel: str) -> Iterator[Any]:
    """A video as an open local file, or as its bytes when it lies in an object store."""
    path = place(root, rel)
    if storage.is_local(path):
        with storage.open_read(path) as f:
            yield f
    elif storage.size(path) > MAX_REMOTE:
        raise Reject("too_large", f"{storage.size(path)} bytes in an object store, allowed {MAX_REMOTE}: copy it to a disk")
    else:
        yield storage.read(path)


def digest(data: Any) -> str:
    """sha256 of the bytes, or of a whole open file."""
    if not hasattr(data, "fileno"):
        return sha256(data).hexdigest()
    out = sha256()
    data.seek(0)
    while block := data.read(1 << 20):
        out.update(block)
    return out.hexdigest()
