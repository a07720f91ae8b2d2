"""What crosses the socket of a guarded child, seen from the parent: headers that are believed only so far, and files to hand over.

What comes in: the raw bytes of a header, from a process that strangers' bytes may have taken over. What goes out: a mapping
of the form that `child.py` knows, or `ValueError`: JSON that nests too deep, a number that is none, a kind or a field that does not exist. Then the
other way round: a file descriptor of the bytes to decode.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from pipelines.format.errors import Reject

_FIELDS: dict[str, dict[str, type]] = {
    "ready": {"walls": list},
    "answer": {"meta": dict},
    "reject": {"reason": str, "detail": str},
    "broken": {"detail": str},
    "end": {},
}
_REASON = re.compile(r"[a-z][a-z0-9_]{0,31}")  # reasons are counted and become keys of cards: a child may not invent what no code would
_RATIO = re.compile(r"-?\d{1,30}(/\d{1,30})?")


def head_of(raw: bytes | bytearray) -> tuple[dict[str, Any], int]:
    """A header, and how many bytes follow it. Raises `ValueError`."""
    try:
        head = json.loads(raw)
        length = head["blob"]
        fields = _FIELDS[head["kind"]]
        if type(length) is not int or not all(type(head[name]) is kind for name, kind in fields.items()):
            raise ValueError("a field of another type")
    except (KeyError, TypeError, RecursionError) as e:
        raise ValueError(type(e).__name__) from None
    if head["kind"] == "reject" and not _REASON.fullmatch(head["reason"]):
        raise ValueError("a reason that is none")
    return head, length


@contextlib.contextmanager
def believed() -> Iterator[None]:
    """Around code that reads an answer's meta: fields that are missing or make no sense cost the record."""
    try:
        yield
    except (KeyError, TypeError, ValueError, ArithmeticError, IndexError):
        raise Reject("unreadable", "the decoder answered nonsense") from None


def ratio(text: Any) -> Fraction:
    """A fraction as text. Not `Fraction(text)` at once: that takes minutes over "1e999999999"."""
    if not isinstance(text, str) or not _RATIO.fullmatch(text):
        raise ValueError("no fraction")
    return Fraction(text)


@contextlib.contextmanager
def as_file(data: Any) -> Iterator[int]:
    """A file descriptor of the bytes: an anonymous file in memory; or the descriptor of a file that is already open."""
    if hasattr(data, "fileno"):
        yield data.fileno()
        return
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("media", os.MFD_CLOEXEC)
    else:  # not Linux: an unnamed temporary file
        with tempfile.TemporaryFile() as f:
            fd = os.dup(f.fileno())
    try:
        view, at = memoryview(data), 0
        while at < len(view):
            at += os.write(fd, view[at : at + (64 << 20)])
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
