"""Paths as text, for every place data can lie: joining, relative references between artifacts, and what kinds are opened at all."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.format.errors import InputError

PROTOCOLS = ("file", "s3", "memory", "gs", "az")


def protocol(path: str) -> str:
    """The protocol of a path; chained URLs (`zip::…`) and unknown protocols are refused."""
    head, sep, _ = path.partition("://")
    name = head if sep else "file"
    if "::" in path or name not in PROTOCOLS:
        raise InputError("this kind of path is not opened", where=path, allowed=", ".join(f"{p}://" for p in PROTOCOLS) + " or a local path")
    return name


def is_local(path: str) -> bool:
    """Whether a path lies on this machine's own file system."""
    return protocol(path) == "file"


def local(path: str) -> Path:
    """The local path; an error for anything else."""
    assert is_local(path), f"not a local path: {path}"
    return Path(path.removeprefix("file://"))


def join(root: str, *parts: str) -> str:
    """Path parts with single slashes, for any protocol."""
    return "/".join([root.rstrip("/") if root not in ("/", "memory://") else root.removesuffix("/"), *(p.strip("/") for p in parts if p)])


def absolute(path: str) -> str:
    """The same place from any working directory."""
    return os.path.abspath(local(path)) if is_local(path) else path


def relative(path: str, start: str) -> str:
    """`path` as seen from the folder `start` (posix), or unchanged when they lie in different stores."""
    if is_local(path) and is_local(start):
        return os.path.relpath(local(path), local(start)).replace(os.sep, "/")
    head, tail = path.partition("://")[::2], start.partition("://")[::2]
    return os.path.relpath("/" + head[1], "/" + tail[1]) if head[0] == tail[0] != "" else path


def resolve(path: str, start: str) -> str:
    """The inverse of `relative`: a path written in an artifact's card, as seen from the artifact at `start`."""
    if "://" in path or path.startswith("/"):
        return path
    if is_local(start):
        return os.path.normpath(local(start) / path)
    name, _, rest = start.partition("://")
    return f"{name}://{os.path.normpath(os.path.join('/' + rest, path)).lstrip('/')}"
