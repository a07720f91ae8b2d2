"""Scratch files of downloads: there while a part reads them, gone when it ends, however it ends.

What comes in: a folder, or none for the one of this user below TMPDIR. What goes out: a file open for writing, under a name nobody could foresee.
The process that made it holds its lock, and the kernel drops locks with their process. So what can be locked belongs to nobody: every new scratch
file first removes what killed processes left, and never one that another process is using, on however many workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from uuid import uuid4

from pipelines.format.errors import StorageError, told

_NAME = "headwater-fetch-"


@contextlib.contextmanager
def scratch(folder: str | None = None) -> Iterator[tuple[IO[bytes], Path]]:
    """An empty file and its path. It may be `renamed` meanwhile, or moved away for good."""
    base = _folder(folder)
    sweep(base)
    file, path = _created(base)
    try:
        with file:
            yield file, path
    finally:
        for left in base.glob(f"{path.name}*"):
            with contextlib.suppress(OSError):
                os.unlink(left)


def renamed(path: Path, end: str) -> Path:
    """A scratch file under a name that ends so; it is still the same scratch file."""
    new = path.with_name(path.name + end)
    with told(str(new)):
        os.rename(path, new)
    return new


def sweep(folder: Path) -> int:
    """Remove the scratch files whose process is gone. Returns how many."""
    removed = 0
    for path in folder.glob(f"{_NAME}*"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
                removed += 1
            finally:
                os.close(fd)
    return removed


def _folder(folder: str | None) -> Path:
    """The folder, made if need be. The one below TMPDIR must be ours alone: others may write beside it."""
    base = Path(folder) if folder else Path(tempfile.gettempdir()) / f"headwater-{os.getuid()}"
    with told(str(base)):
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(base)
    if not folder and not (stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()):
        raise StorageError("the scratch folder is somebody else's", where=base, next="name another one: TMPDIR=… or listed.scratch")
    return base


def _created(base: Path) -> tuple[IO[bytes], Path]:
    while True:
        path = base / f"{_NAME}{uuid4().hex}"
        with told(str(path)):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return os.fdopen(fd, "w+b"), path
        except BlockingIOError:
            pass  # a sweeping process came between the two calls; it removes the file
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
