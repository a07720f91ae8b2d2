"""Bytes in and out of any place: the only importer of fsspec, and the only module that publishes.

What comes in: paths as text (`/data/x`, `file:///data/x`, `s3://bucket/x`, `memory://x`). What goes out: bytes, listings, and files that
are whole or not there. fsspec's own `open(..., "wb")` commits what was written when its body raises, so nothing else may write with it.

    building()          a scratch file, hashed while it is written; `.publish(root, name)` makes it visible under its final name in one step;
                        leaving the block without publishing, for whatever reason, leaves nothing visible
    create_exclusive()  the commit: of many writers exactly one succeeds
    replace()           a card: readers see the old or the new one, never a mixture

Local: scratch beside the target (`_tmp/`), fsync, rename, fsync of the folder. Object stores: one put under the final name, which is atomic
there. Every step calls `failpoint(name)`, so that tests can die, fail or hang at the k-th step.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, cast
from uuid import uuid4

import fsspec

from pipelines.format.again import again
from pipelines.format.errors import InputError, told
from pipelines.format.failpoint import failpoint, failpoint_steps
from pipelines.format.paths import absolute, is_local, join, local, protocol, relative, resolve

__all__ = ["TMP", "Building", "absolute", "building", "create_exclusive", "delete", "delete_tree", "exists", "failpoint", "failpoint_steps"]
__all__ += ["is_local", "join", "listing", "local", "map_file", "open_read", "protocol", "publish", "read", "read_json", "relative", "replace"]
__all__ += ["resolve", "size", "sweep"]

TMP = "_tmp"  # scratch of unfinished work below an artifact; `pipelines gc` empties it
_BLOCK = 8 << 20


def _fs(path: str) -> tuple[Any, str]:
    name = protocol(path)
    # Listings must show what other processes have just written, so no cache of them is kept.
    options = {"use_listings_cache": False} if name == "s3" else {}
    fs = fsspec.filesystem(name, **options)
    return fs, fs._strip_protocol(path)


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    fs, p = _fs(path)
    return os.path.exists(p) if is_local(path) else bool(fs.exists(p))


def size(path: str) -> int:
    """Bytes of a file."""
    fs, p = _fs(path)
    with told(path):
        return os.stat(p).st_size if is_local(path) else int(fs.info(p)["size"])


def read(path: str, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes [start, stop) of a file; all of it by default. Remote slices are ranged reads, tried again after passing faults."""
    fs, p = _fs(path)
    with told(path):
        if is_local(path):
            with open(p, "rb") as f:
                f.seek(start)
                return f.read() if stop is None else f.read(stop - start)
        return again(path, lambda: bytes(fs.cat_file(p, start=start or None, end=stop)))


def read_json(path: str) -> Any:
    """A JSON file."""
    try:
        return json.loads(read(path))
    except ValueError as e:
        raise InputError("not a JSON file", where=path, found=e) from e


@contextlib.contextmanager
def open_read(path: str) -> Iterator[IO[bytes]]:
    """A seekable binary file for reading."""
    fs, p = _fs(path)
    with told(path):
        f = open(p, "rb") if is_local(path) else fs.open(p, "rb")  # noqa: SIM115 - closed below
    with f:
        yield cast(IO[bytes], f)


def map_file(path: str) -> memoryview:
    """A whole file, read-only: mapped when local, fetched when remote."""
    if not is_local(path):
        return memoryview(read(path))
    with told(path), open(local(path), "rb") as f:
        length = os.fstat(f.fileno()).st_size
        return memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)) if length else memoryview(b"")


def listing(path: str, suffixes: tuple[str, ...] | None = None) -> list[tuple[str, int, str]]:
    """Every file below a folder as (relative posix path, bytes, tag), sorted by path bytes. A path to one file lists that file.

    The tag changes when the file does: mtime_ns locally, the etag in object stores. Hidden files and folders are passed over.
    """
    fs, p = _fs(path)
    found: list[tuple[str, int, str]] = []
    with told(path):
        if is_local(path):
            found = list(_walk(p))
        else:
            info = fs.find(p, detail=True)
            if not info and not fs.exists(p):
                raise FileNotFoundError(path)
            for name, entry in info.items():
                rel = name[len(p) :].lstrip("/") if name != p else name.rsplit("/", 1)[-1]
                tag = str(entry.get("ETag") or entry.get("created") or "").strip('"')
                found.append((rel, int(entry["size"]), tag))
    shown = [f for f in found if not any(part.startswith(".") for part in f[0].split("/"))]
    wanted = [f for f in shown if suffixes is None or f[0].lower().endswith(suffixes)]
    return sorted(wanted, key=lambda f: f[0].encode())


def _walk(top: str) -> Iterator[tuple[str, int, str]]:
    if os.path.isfile(top):
        stat = os.stat(top)
        yield os.path.basename(top), stat.st_size, str(stat.st_mtime_ns)
        return
    if not os.path.isdir(top):
        raise FileNotFoundError(top)
    for folder, _, names in os.walk(top):
        for name in names:
            full = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):  # removed between listing and looking
                stat = os.stat(full)
                yield os.path.relpath(full, top).replace(os.sep, "/"), stat.st_size, str(stat.st_mtime_ns)


class Building:
    """A file that is being written in scratch space and hashed on the way. Nobody sees it before `publish`."""

    def __init__(self, scratch: str) -> None:
        self._path = scratch
        self._file: IO[bytes] | None = open(scratch, "wb")  # noqa: SIM115 - closed by `close`
        self._hash, self.nbytes = sha256(), 0

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes; returns the offset at which they begin."""
        assert self._file is not None
        start = self.nbytes
        with told(self._path):
            failpoint("write")
            self._file.write(data)
        self._hash.update(data)
        self.nbytes += len(data)
        return start

    def tell(self) -> int:
        """Bytes written so far."""
        return self.nbytes

    @property
    def sha256(self) -> str:
        """Of what has been written so far."""
        return self._hash.hexdigest()

    def publish(self, root: str, name: str) -> str:
        """Make the file visible as root/name, at once and whole. Returns the path."""
        assert self._file is not None
        final = join(root, name)
        with told(final):
            failpoint("flush")
            self._file.flush()
            if is_local(root):
                failpoint("fsync")
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            _move_in(self._path, final)
        return final

    def close(self) -> None:
        """Drop what was not published."""
        if self._file is not None:
            self._file.close()
            self._file = None
        with contextlib.suppress(OSError):
            os.unlink(self._path)


@contextlib.contextmanager
def building(root: str, suffix: str = "") -> Iterator[Building]:
    """A scratch file for an artifact at `root`: on the same file system when that is local, in the temporary folder otherwise."""
    folder = local(join(root, TMP)) if is_local(root) else Path(tempfile.gettempdir())
    with told(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        b = Building(str(folder / f"{uuid4().hex}{suffix}"))
    try:
        yield b
    finally:
        b.close()


def publish(path: str, data: bytes, scratch: str | None = None) -> str:
    """Write a small file whole or not at all. `scratch` is the artifact whose scratch space is used (default: the file's folder)."""
    root, _, name = path.rpartition("/")
    with building(scratch or root or ".") as b:
        b.write(data)
        return b.publish(root or ".", name)


def sweep(root: str) -> None:
    """Remove an artifact's empty scratch folder."""
    if is_local(root):
        with contextlib.suppress(OSError):
            local(join(root, TMP)).rmdir()


replace = publish  # a rename and a put both replace what was there at once; two names, because the two promises differ


def create_exclusive(path: str, data: bytes, scratch: str | None = None) -> bool:
    """Create a file that must not exist yet. Returns False, and writes nothing, when somebody was first."""
    fs, p = _fs(path)
    if not is_local(path):
        with told(path):
            failpoint("create")
            try:
                if protocol(path) == "memory" and fs.exists(p):
                    return False
                fs.pipe_file(p, data, mode="create")
            except FileExistsError:
                return False
        return True
    with building(scratch or path.rpartition("/")[0] or ".") as b, told(path):
        b.write(data)
        assert b._file is not None
        failpoint("flush")
        b._file.flush()
        failpoint("fsync")
        os.fsync(b._file.fileno())
        failpoint("link")
        target = local(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(b._path, target)  # link fails when the name is taken, also over NFS
        except FileExistsError:
            return False
        _sync_folder(str(target.parent))
    return True


def delete(path: str) -> None:
    """Remove one file if it is there."""
    fs, p = _fs(path)
    with told(path):
        failpoint("delete")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(p) if is_local(path) else fs.rm_file(p)


def delete_tree(path: str) -> None:
    """Remove a folder of our own making and all that is in it, if it is there."""
    fs, p = _fs(path)
    with told(path):
        failpoint("delete tree")
        if is_local(path):
            shutil.rmtree(p, ignore_errors=True)
        elif fs.exists(p):
            fs.rm(p, recursive=True)


def _move_in(scratch: str, final: str) -> None:
    if is_local(final):
        target = local(final)
        target.parent.mkdir(parents=True, exist_ok=True)
        failpoint("rename")
        os.replace(scratch, target)
        _sync_folder(str(target.parent))
        return
    fs, p = _fs(final)
    failpoint("put")
    if protocol(final) == "memory":
        fs.pipe_file(p, Path(scratch).read_bytes())
    else:
        fs.put_file(scratch, p)  # one PUT, or a multipart upload that becomes visible when it completes
    os.unlink(scratch)


def _sync_folder(folder: str) -> None:
    failpoint("fsync folder")
    fd = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
