"""A body of gigabytes on its way into a file: hashed as it comes, and taken up where it stopped.

What comes in: the heads and pieces of one or more answers to the same question. What goes out: a file whose bytes are those of one answer, with its
size and hash. At no time more than one piece is in memory.

An attempt after a fault asks for the rest (Range) on the condition that the file is still the same one (If-Range, with a strong ETag or the time of
its last change); a server that answers with the whole, with another range, another length or another ETag starts the file over. A joined
file whose hash is not the one expected is fetched once more from its start before anything is said about it.

What a server packed unasked is unpacked on the way. Not so a file that is published packed: `x.warc.gz` sent with `Content-Encoding: gzip` is
what many servers make of a file named so, and is kept as it was sent, so that its bytes and its hash are those of the file.
"""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import IO

from pipelines.fetch.digests import hasher, same
from pipelines.fetch.faults import Fault
from pipelines.fetch.packing import Unpacking, packing
from pipelines.fetch.policy import Policy
from pipelines.fetch.wire import Head
from pipelines.format.errors import told

RENEWED = 8 << 20  # bytes that make a failed attempt worth more than it cost
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_PACKED = (".gz", ".tgz")
_STEADY = 60.0  # seconds: RFC 9110, 8.8.2.2: a date is a strong validator once it is a minute older than the answer


class Download:
    """One file. `file` is open for writing and empty, `path` is the path part of its URL, `where` what errors of the disk name."""

    def __init__(self, file: IO[bytes], where: str, path: str, policy: Policy, digest: str | None = None) -> None:
        self._file, self._where, self._policy, self._digest = file, where, policy, digest
        self._named_packed = path.partition("?")[0].lower().endswith(_PACKED)
        self._validator: str | None = None
        self._unpacking: Unpacking | None = None
        self._total: int | None = None
        self.began: Head | None = None  # the head of the answer that the file begins with: later ones need not repeat what that one said
        self._joined = False
        self._tried_whole = False
        self._mark = 0
        self._fresh()

    def _fresh(self) -> None:
        self.size = self._wire = 0
        self._sha256, self._wanted = sha256(), hasher(self._digest or "")
        self._sent = hasher(self._digest or "")  # of the bytes as sent, where they are not those kept

    @property
    def sha256(self) -> str:
        """Of what is in the file, in hex."""
        return self._sha256.hexdigest()

    @property
    def agrees(self) -> bool:
        """Whether the file, or what was sent of it, has the hash that was asked for."""
        return self._digest is None or same(self._digest, self._wanted) or (self._unpacking is not None and same(self._digest, self._sent))

    def renewed(self) -> bool:
        """Whether the last attempt, though it failed, brought the file far beyond where any had been."""
        moved = self._wire - self._mark >= RENEWED and (self._joined or self._mark == 0)
        if self._wire > self._mark:
            self._mark = self._wire
        return moved

    def asks(self) -> list[str]:
        """Header lines for what is missing: nothing said means all of it."""
        if not self._wire or self._validator is None:
            return []
        return [f"Range: bytes={self._wire}-", f"If-Range: {self._validator}"]

    def judge(self, head: Head) -> int | None:
        """How many bytes an answer may bring, once the file is ready for them; None for answers that bring none of it."""
        asked = bool(self.asks())
        if head.status == 206 and asked:
            self._go_on(head)
        elif head.status == 416 and asked:
            self._start_over(None)
            raise Fault("fetch_transient", "the rest that was asked for is not there any more")
        elif head.status == 200:
            self._start_over(head)
        else:
            return None
        return self._policy.max_bytes - self._wire

    def _go_on(self, head: Head) -> None:
        match = _RANGE.fullmatch((head.get("content-range") or "").strip())
        tag = head.get("etag")
        right = match and int(match[1]) == self._wire and match[3] in ("*", str(self._total or match[3])) and not head.get("content-encoding")
        if not right or (tag and self._validator and self._validator.startswith('"') and tag != self._validator):
            self._start_over(None)
            raise Fault("fetch_transient", "the rest that came is not what was asked for")
        self._joined = True

    def _start_over(self, head: Head | None) -> None:
        self._fresh()
        self._joined, self.began = False, head
        with told(self._where):
            self._file.seek(0)
            self._file.truncate()
        kind = packing(head.get("content-encoding")) if head else None
        self._unpacking = Unpacking(kind, self._policy.max_bytes) if kind and not (kind == "gzip" and self._named_packed) else None
        self._validator = _validator(head) if head and self._unpacking is None else None
        length = (head.get("content-length") if head else None) or ""
        self._total = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None

    def write(self, piece: bytes) -> None:
        """One piece of the body, as it was sent."""
        self._wire += len(piece)
        if self._unpacking is None:
            self._keep(piece)
            return
        self._sent.update(piece)
        for out in self._unpacking.unpack(piece):
            self._keep(out)

    def _keep(self, data: bytes) -> None:
        self._sha256.update(data)
        if self._digest is not None:
            self._wanted.update(data)
        with told(self._where):
            self._file.write(data)
        self.size += len(data)

    def end(self) -> None:
        """The body is whole. Raises `Fault` where it is not, or where joined pieces are not the file that was expected."""
        if self._total is not None and self._wire != self._total:
            self._start_over(None)
            raise Fault("fetch_transient", "the pieces do not add up to the file")
        if self._unpacking is not None:
            self._unpacking.end()
        with told(self._where):
            self._file.flush()
        if not self.agrees and self._joined and not self._tried_whole:
            self._tried_whole = True
            self._start_over(None)
            raise Fault("fetch_transient", "the joined pieces have another hash than expected")


def _validator(head: Head) -> str | None:
    """What tells this file from another of the same name, as If-Range takes it; None where nothing does so safely."""
    if "bytes" not in (head.get("accept-ranges") or "bytes").lower():
        return None
    tag = head.get("etag")
    if tag:
        return tag if re.fullmatch(r'"[\x21\x23-\x7e]{1,200}"', tag) else None
    changed, now = head.get("last-modified"), head.get("date")
    try:
        steady = (parsedate_to_datetime(now or "") - parsedate_to_datetime(changed or "")).total_seconds() >= _STEADY
    except (ValueError, TypeError, OverflowError):
        return None
    return changed if steady and changed and re.fullmatch(r"[A-Za-z0-9 ,:+-]{1,40}", changed) else None
