"""A WARC, WET or ARC file cut into its records, whatever is wrong with some of them.

What comes in: a binary stream of unpacked bytes (`bounded.opened`: what it unpacks to is capped). What goes out: (offset, the record's
bytes) in order, or a `Reject` in place of a record that is damaged or longer than the cap. Only the frame is read here: the header's
length, the payload, the blank lines after it. A record whose length is wrong does not end where the next begins; the search then goes on to
the next line that opens a record, so a garbled record costs itself and at most the one it swallowed. warcio reads what is inside
(`sources/warc.py`); on a whole file it gives up at the first such record.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

from pipelines.format.errors import Reject

MAX_HEADER = 64 << 10
_WARC = re.compile(rb"WARC/\d")
_ARC = re.compile(rb"[a-z]{2,10}:\S.* \d+\s*$", re.I)  # URL, address, date, type, …, length
_PIECE = 1 << 20


def records(stream: IO[bytes], cap: int) -> Iterator[tuple[int, bytes | Reject]]:
    """Every record of at most `cap` payload bytes, with the offset of its first byte. Reading may raise `Reject` where the archive is
    cut."""
    at, lost = 0, False
    while line := stream.readline(MAX_HEADER):
        start = at
        at += len(line)
        if not line.strip():
            continue
        if _WARC.match(line):
            head, length = _header(stream, line)
        elif _ARC.match(line):
            head, length = line, int(line.rsplit(None, 1)[1])
        else:
            if not lost:
                yield start, Reject("unreadable", f"no record begins here: {line[:60]!r}")
            lost = True
            continue
        at, lost = start + len(head), False
        if length is None:
            yield start, Reject("unreadable", "a header without a length, or without an end")
            lost = True
            continue
        body, got = _payload(stream, length, cap)
        at += got
        if got < length:
            yield start, Reject("truncated", f"{got} bytes of {length}")
        elif body is None:
            yield start, Reject("too_large", f"a record of {length} bytes, allowed {cap}")
        else:
            yield start, head + body


def _header(stream: IO[bytes], first: bytes) -> tuple[bytes, int | None]:
    """The header to its blank line, and the length it states."""
    head, length = first, None
    while len(head) < MAX_HEADER:
        line = stream.readline(MAX_HEADER)
        head += line
        name, colon, value = line.partition(b":")
        if colon and name.strip().lower() == b"content-length":
            length = int(value) if value.strip().isdigit() and len(value.strip()) < 15 else None
        if line in (b"\r\n", b"\n"):
            return head, length
        if not line:
            break
    return head, None


def _payload(stream: IO[bytes], length: int, cap: int) -> tuple[bytes | None, int]:
    """The payload and how much there was of it; one over the cap is passed over piece by piece."""
    if length <= cap:
        body = stream.read(length)
        return body, len(body)
    got = 0
    while got < length and (piece := stream.read(min(_PIECE, length - got))):
        got += len(piece)
    return None, got
