"""Where the pieces of a checkpoint lie: torch.distributed.checkpoint writing and reading through `pipelines.format.storage`.

A piece is hashed while it is written and appears under its name whole or not at all, on a disk (scratch, fsync, rename) and in an object store
(one put) alike; memory holds none of it. Reading asks for the slices that a rank needs, by ranged reads that are tried again where a store
fails in passing, so that no rank fetches what is another's.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystemBase

from pipelines.format import storage

BLOCK = 32 << 20  # bytes hashed at once, and read ahead from an object store at most
READ_AHEAD = 4 << 20


class _Written(io.RawIOBase):
    """What torch writes into: a storage.Building as a stream."""

    def __init__(self, building: storage.Building) -> None:
        self._building = building

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._building.write(view)
        return len(view)

    def tell(self) -> int:
        return self._building.tell()


class _Ranges(io.RawIOBase):
    """A remote file read by ranges. Each read is tried again after passing faults, which one long-lived stream could not be."""

    def __init__(self, path: str) -> None:
        self._path, self._size, self._at = path, storage.size(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        data = storage.read(self._path, self._at, stop) if stop > self._at else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Places(FileSystemBase):
    """torch's file system in terms of ours. `files` collects an entry for the marker of each file written."""

    def __init__(self, scratch: str) -> None:
        self.scratch = scratch
        self.files: list[dict[str, Any]] = []

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        if mode == "rb":
            with storage.open_read(path) if storage.is_local(path) else io.BufferedReader(_Ranges(path), READ_AHEAD) as f:
                yield f
            return
        # torch writes its metadata under a temporary name and renames; here every stream is whole or absent, and has its name at once.
        folder, _, name = str(path).removesuffix(".tmp").rpartition("/")
        with storage.building(self.scratch) as b:
            yield _Written(b)
            b.publish(folder, name)
            self.files.append({"path": name, "bytes": b.nbytes, "sha256": b.sha256})

    def concat_path(self, path: Any, suffix: str) -> str:
        return storage.join(str(path), suffix)

    def rename(self, path: Any, new_path: Any) -> None:
        assert str(path).removesuffix(".tmp") == str(new_path), (path, new_path)

    def init_path(self, path: Any) -> str:
        return str(path)

    def mkdir(self, path: Any) -> None:
        """Publishing makes the folders of a disk; object stores have none."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def exists(self, path: Any) -> bool:
        return False  # the folder was emptied before: nothing to overwrite, nothing to warn of

    def rm_file(self, path: Any) -> None:
        storage.delete(str(path))


class Writer(FileSystemWriter):
    """Writes this rank's pieces into `folder`; `files` are their entries for the marker. `scratch`: the artifact whose scratch space is used."""

    def __init__(self, folder: str, scratch: str) -> None:
        super().__init__(folder, sync_files=False, per_thread_copy_ahead=0)  # synced on publishing; tensors are on the host already
        self.fs = self._places = _Places(scratch)  # type: ignore[assignment]
        self.path = folder

    @property
    def files(self) -> list[dict[str, Any]]:
        """{path, bytes, sha256} of each file written so far."""
        return self._places.files


class Reader(FileSystemReader):
    """Reads pieces from `folder`, wherever that is."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.fs = _Places(folder)  # type: ignore[assignment]
        self.path = folder


def digest(path: str) -> str:
    """sha256 of a file, read by blocks."""
    h, end = sha256(), storage.size(path)
    for start in range(0, end, BLOCK):
        h.update(storage.read(path, start, min(start + BLOCK, end)))
    return h.hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """torch warns that a single process saves and loads without a process group, which is what we ask for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
