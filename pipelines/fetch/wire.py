"""HTTP/1.1 as a client that trusts nobody: one GET on a connection that is pinned to a vetted address.

What comes in: a stream and a target. What goes out: the head of the answer, then its body, counted as it arrives. Nothing here is larger than its
cap: 64 KiB of head, 200 header fields, `max_bytes` of body on the wire and again after unpacking (at most 100 to 1 beyond 1 MiB). A body that
ends early, or trickles, is a passing fault; what is no HTTP is a lasting one. An ambiguous length (RFC 9112, 6.3) closes the connection.
The parser is ours because a wall deadline, a least rate and these caps are promises about every byte read, and the usual clients read lines.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipelines.fetch.faults import Fault
from pipelines.fetch.packing import unpacked
from pipelines.fetch.policy import Policy
from pipelines.fetch.urls import Target

MAX_HEAD = 64 << 10
MAX_FIELDS = 200
CHUNK = 256 << 10
LARGE = 4 << 20  # what one body may hold before it must wait for one of the few places for large ones
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: |$)")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SIZE = re.compile(rb"[0-9a-fA-F]{1,8}")


@dataclass
class Head:
    """Status and header fields of an answer, names in lower case. `keep`: the connection may be used again once the body is read."""

    status: int
    fields: list[tuple[str, str]] = field(default_factory=list)
    keep: bool = True

    def all(self, name: str) -> list[str]:
        """Every value of a field, in order."""
        return [value for key, value in self.fields if key == name]

    def get(self, name: str) -> str | None:
        """The first value of a field."""
        return next(iter(self.all(name)), None)


def request(target: Target, policy: Policy, accept: str, more: Sequence[str] = ()) -> bytes:
    """The bytes of a GET: no cookies, no credentials, no referrer, no compression. `more` are header lines of our own making."""
    lines = [f"GET {target.path} HTTP/1.1", f"Host: {target.authority}", f"User-Agent: {policy.user_agent}", f"Accept: {accept}"]
    return ("\r\n".join([*lines, "Accept-Encoding: identity", "Connection: keep-alive", *more]) + "\r\n\r\n").encode("ascii")


async def read_head(reader: asyncio.StreamReader) -> Head:
    """The head of the final answer; up to four interim ones (1xx) are passed over."""
    for _ in range(5):
        try:
            head = _parse_head(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.IncompleteReadError as error:
            raise Fault("fetch_transient", f"the connection ended in the head, after {len(error.partial)} bytes") from None
        except asyncio.LimitOverrunError:
            raise Fault("fetch_permanent", f"a head of more than {MAX_HEAD} bytes") from None
        if head.status >= 200:
            return head
    raise Fault("fetch_permanent", "interim answers without end")


def _parse_head(data: bytes) -> Head:
    first, *lines = data[:-4].split(b"\r\n")
    match = _STATUS.match(first)
    if not match or len(data) > MAX_HEAD or len(lines) > MAX_FIELDS:
        raise Fault("fetch_permanent", f"not an HTTP/1.1 head: {first[:40]!r}")
    head = Head(int(match[2]))
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _FIELD.fullmatch(name) or b"\0" in value or b"\r" in value:
            raise Fault("fetch_permanent", f"not a header field: {line[:40]!r}")
        head.fields.append((name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")))
    said = ",".join(head.all("connection")).lower()
    head.keep = "close" not in said and (match[1] == b"1" or "keep-alive" in said)
    return head


class Body:
    """Reads one body against its caps. `whole=False` takes the first `limit` bytes of a longer one instead of refusing it; `large` are the
    places for bodies beyond LARGE.

    With `sink` nothing is held here: pieces go there as they come, and the body has as long as its rate earns it instead of a wall. Each byte is
    worth 1/`min_rate` seconds and no more than `grace` are ever saved up, so that neither a fast start nor a trickle buys a stall."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        head: Head,
        policy: Policy,
        limit: int,
        clock: asyncio.Timeout,
        whole: bool = True,
        large: asyncio.Semaphore | None = None,
        sink: Callable[[bytes], None] | None = None,
    ) -> None:
        self._reader, self._head, self._policy, self._limit, self._clock, self._whole = reader, head, policy, limit, clock, whole
        self._loop = asyncio.get_running_loop()
        self._start, self._end = self._loop.time(), clock.when() or 0.0
        self._alarm = self._start + policy.grace
        self._large, self._placed = large, False
        self._pieces, self._size = list[bytes](), 0
        self._sink, self._poured = sink or self._pieces.append, sink is not None
        self._cut = False

    async def read(self) -> bytes:
        """The body as sent, unpacked if the server packed it unasked."""
        await self.pour()
        return unpacked(b"".join(self._pieces), self._head.get("content-encoding"), self._limit)

    async def pour(self) -> None:
        """Every piece of the body to the sink, as it was sent."""
        self._pace(0)
        try:
            await self._read()
        except asyncio.IncompleteReadError:
            raise Fault("fetch_transient", f"the body ended early, after {self._size} bytes") from None
        except asyncio.LimitOverrunError:
            raise Fault("fetch_permanent", "not a chunked body") from None
        finally:
            if self._placed and self._large:
                self._large.release()
        self._head.keep &= not self._cut

    async def _read(self) -> None:
        encodings, lengths = self._head.all("transfer-encoding"), set(self._head.all("content-length"))
        if self._head.status in (204, 304):
            return
        if encodings:
            if [e.strip().lower() for e in encodings] != ["chunked"]:
                raise Fault("fetch_permanent", f"transfer encoding {encodings[0][:40]!r}")
            self._head.keep &= not lengths
            await self._chunked()
        elif lengths:
            length = lengths.pop()
            if lengths or not (length.isascii() and length.isdigit() and len(length) < 19):
                raise Fault("fetch_permanent", "a Content-Length that is no single number")
            await self._exactly(int(length))
        else:
            self._head.keep = False
            while not self._cut and await self._some(CHUNK):
                pass

    async def _chunked(self) -> None:
        while not self._cut:
            line = await self._line()
            size = _SIZE.match(line)
            if not size:
                raise Fault("fetch_permanent", f"not a chunk size: {line[:20]!r}")
            if int(size[0], 16) == 0:
                break
            await self._exactly(int(size[0], 16))
            if not self._cut and await self._line():
                raise Fault("fetch_permanent", "a chunk that is longer than it says")
        for _ in range(MAX_FIELDS):
            if self._cut or not await self._line():
                return
        raise Fault("fetch_permanent", "trailers without end")

    async def _line(self) -> bytes:
        line = await self._reader.readuntil(b"\r\n")
        if len(line) > 1_024:
            raise Fault("fetch_permanent", "a line of chunking of more than 1 KiB")
        return line[:-2]

    async def _exactly(self, n: int) -> None:
        if self._whole and self._size + n > self._limit:
            raise self._too_large()
        end = self._size + n
        while self._size < end and not self._cut:
            if not await self._some(min(CHUNK, end - self._size)):
                raise asyncio.IncompleteReadError(b"", None)

    async def _some(self, most: int) -> int:
        if self._large and not self._placed and self._size > LARGE:
            self._clock.reschedule(self._end)
            self._placed = await self._large.acquire()
        piece = await self._reader.read(most)
        if self._size + len(piece) > self._limit:
            if self._whole:
                raise self._too_large()
            piece = piece[: self._limit - self._size]
            self._cut = True
        self._sink(piece)
        self._size += len(piece)
        self._pace(len(piece))
        return len(piece)

    def _too_large(self) -> Fault:
        return Fault("too_large", f"more than {self._limit:,} bytes on the wire")

    def _pace(self, n: int) -> None:
        """`n` bytes came. Move the alarm to when too little would have come, if nothing more did: of a body in memory, when its mean rate would
        fall below the least allowed, and never beyond the deadline; of a poured one, when what it has saved up is spent."""
        if self._poured:
            rate = self._policy.min_rate
            self._alarm = min(self._alarm + n / rate, self._loop.time() + self._policy.grace) if rate else self._loop.time() + self._policy.grace
            self._clock.reschedule(self._alarm)
        elif self._policy.min_rate:
            earned = max(self._policy.grace, self._size / self._policy.min_rate)
            self._clock.reschedule(min(self._end, self._start + earned))
