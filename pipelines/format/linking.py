"""A file of one artifact under the same name in another: linked where the file system can, so that it costs no bytes.

Files are named by their content and never change, so two artifacts may share one; each can be deleted without the other. Where a link is not
possible (another disk, an object store) the bytes are copied and checked.
"""

from __future__ import annotations

import os
from contextlib import suppress

from pipelines.format import storage
from pipelines.format.errors import InputError, VerifyError, told
from pipelines.format.failpoint import failpoint
from pipelines.format.paths import is_local, local

_BLOCK = 8 << 20


def link(source: str, root: str, name: str, nbytes: int, sha256: str) -> None:
    """Make `source` visible as root/name, whole. A link is made of a file of the right size; a copy has the right hash, or is a VerifyError."""
    size = storage.size(source)
    if size != nbytes:
        raise VerifyError("a file has another length than its card says", where=source, found=size, allowed=nbytes)
    target = storage.join(root, name)
    if is_local(source) and is_local(target) and _linked(source, target):
        return
    with storage.open_read(source) as f, storage.building(root) as b:
        while block := f.read(_BLOCK):
            b.write(block)
        if b.sha256 != sha256:
            raise VerifyError("a file differs from what its card says", where=source, found=b.sha256, allowed=sha256)
        b.publish(root, name)


def _linked(source: str, target: str) -> bool:
    with told(target):
        failpoint("link")
        local(target).parent.mkdir(parents=True, exist_ok=True)
    if storage.exists(target):
        with suppress(InputError):
            if storage.size(target) == storage.size(source):
                return True  # a second attempt: the name says the content
        storage.delete(target)
    try:
        os.link(local(source), local(target))
    except FileExistsError:
        return True  # somebody else did the same at this moment
    except OSError:
        return False  # another disk, or a file system without links
    return True
