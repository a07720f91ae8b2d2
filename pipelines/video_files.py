"""Videos as open files: from a disk as they lie, from an object store by way of scratch space; and the hash that groups what one file gave."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

from pipelines.fetch.scratch import scratch
from pipelines.format import storage
from pipelines.format.errors import HeadwaterError, Reject, told
from pipelines.listing import place

MAX_REMOTE = 64 << 30  # bytes of scratch space that one file of an object store may take
_PIECE = 8 << 20


@contextmanager
def video_file(root: str, rel: str) -> Iterator[Any]:
    """A listed video as an open file on a disk, rewound."""
    with video_at(place(root, rel)) as f:
        yield f


@contextmanager
def video_at(path: str, folder: str | None = None) -> Iterator[Any]:
    """The same by its full path. What lies in an object store is copied to a scratch file (below `folder`) that is gone with the block: decoders
    seek, and memory would not hold it. Raises `Reject` for what is not there or too large."""
    if storage.is_local(path):
        with storage.open_read(path) as f:
            yield f
        return
    try:
        size = storage.size(path)
    except HeadwaterError as e:
        raise Reject("unreadable", e.what) from None
    if size > MAX_REMOTE:
        raise Reject("too_large", f"{size} bytes in an object store, allowed {MAX_REMOTE}")
    with scratch(folder) as (file, own):
        with storage.open_read(path) as remote, told(str(own)):
            shutil.copyfileobj(remote, file, _PIECE)
            file.flush()
        with open(own, "rb") as f:
            yield f


def digest(data: Any) -> str:
    """sha256 of the bytes, or of a whole open file."""
    if not hasattr(data, "fileno"):
        return sha256(data).hexdigest()
    out = sha256()
    data.seek(0)
    while block := data.read(1 << 20):
        out.update(block)
    return out.hexdigest()
