"""One request and its answer: a turn at the host, a vetted address, a pinned connection, the head judged before the body is asked for.

What comes in: a target and a time budget. What goes out: head, body and the seconds it took, or a `Fault`. Redirects, retries and robots.txt are
the client's; here an answer of any status is an answer, except that errors of HTTP become faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Protocol

from pipelines.fetch import opt_out
from pipelines.fetch.connections import Connection, Connections
from pipelines.fetch.faults import Fault
from pipelines.fetch.hosts import Hosts
from pipelines.fetch.policy import Policy
from pipelines.fetch.resolve import Resolver
from pipelines.fetch.urls import Target
from pipelines.fetch.wire import Body, Head, read_head, request

ACCEPT = "image/*,*/*;q=0.5"
REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 527, 529, 530)  # 52x, 530: content networks about their origin
_SMALL = 64 << 10  # an unwanted body is read to its end only to use its connection again, and only if it is as small as this
_LARGE_AT_ONCE = 16  # bodies that may grow beyond `wire.LARGE` at once: 128 endless ones would fill 2.5 GB


class Into(Protocol):
    """Where a body goes that is too large to hold (`download.Download`)."""

    def asks(self) -> list[str]:
        """The header lines that ask for what is still missing."""
        ...

    def judge(self, head: Head) -> int | None:
        """How many bytes this answer may bring, or None when it is none that brings any. Raises `Fault`."""
        ...

    def write(self, piece: bytes) -> None:
        """One piece of the body."""
        ...

    def end(self) -> None:
        """The body came to its end. Raises `Fault` when it should not have."""
        ...


class Exchange:
    """Requests over shared connections, hosts and addresses. `requests` counts what was sent."""

    def __init__(self, policy: Policy, resolver: Resolver, hosts: Hosts, tls: ssl.SSLContext | None = None) -> None:
        self.policy, self._resolver, self._hosts = policy, resolver, hosts
        self._connections = Connections(tls)
        self._total, self._large = asyncio.Semaphore(policy.concurrency), asyncio.Semaphore(_LARGE_AT_ONCE)

    async def get(self, target: Target, sent: Callable[[int], None], seconds: float) -> tuple[Head, bytes, float]:
        """A file: an owner's no in the head is a fault before the body is read."""
        return await self._get(target, seconds, sent, self.policy.max_bytes, True)

    async def pour(self, target: Target, sent: Callable[[int], None], into: Into, seconds: float) -> tuple[Head, bytes, float]:
        """A file that goes `into` a place of its own, or what is still missing of it; the same no is looked for. `seconds` are for what comes
        before the body, which lives by its rate."""
        return await self._get(target, seconds, sent, self.policy.max_bytes, True, into)

    async def get_start(self, target: Target, sent: Callable[[int], None], limit: int, seconds: float) -> tuple[Head, bytes, float]:
        """The first `limit` bytes of a robots.txt, whatever its head says about files."""
        return await self._get(target, seconds, sent, limit, False)

    async def _get(
        self, target: Target, seconds: float, sent: Callable[[int], None], limit: int, file: bool, into: Into | None = None
    ) -> tuple[Head, bytes, float]:
        self._resolver.check_port(target, (80, 443, *self.policy.ports))
        host = self._hosts.of(target.host)
        async with host.turn(), self._total:
            loop = asyncio.get_running_loop()
            began = loop.time()
            try:
                async with asyncio.timeout(max(seconds, 0.0)) as clock:
                    head, body = await self._exchange(target, sent, clock, limit, file, into)
            except TimeoutError:
                raise Fault("timeout", f"{target.origin}: too slow, given up after {loop.time() - began:.1f} s") from None
            except Fault as fault:
                host.rest(fault.wait)
                raise
            return head, body, loop.time() - began

    async def _exchange(
        self, target: Target, sent: Callable[[int], None], clock: asyncio.Timeout, limit: int, file: bool, into: Into | None
    ) -> tuple[Head, bytes]:
        addresses = await self._resolver.addresses(target)
        # A server may close an idle connection at the moment it is used again; that costs an attempt like any reset.
        connection = self._connections.take(target, addresses) or await self._connections.open(target, addresses, self.policy.connect)
        keep = False
        try:
            sent(1)
            connection.writer.write(request(target, self.policy, ACCEPT if into is None else "*/*", into.asks() if into else ()))
            head = await read_head(connection.reader)
            body = await self._body(target, head, connection, clock, limit, file, into)
            keep = head.keep
            return head, body
        except OSError as error:
            raise Fault("fetch_transient", f"{target.origin}: {error or type(error).__name__}") from None
        finally:
            if keep:
                self._connections.give(target, connection)
            else:
                connection.close()

    async def _body(
        self, target: Target, head: Head, connection: Connection, clock: asyncio.Timeout, limit: int, file: bool, into: Into | None
    ) -> bytes:
        good = 200 <= head.status < 300
        if file and (good or head.status in REDIRECTS):
            refused = opt_out.opt_out(head, self.policy)
            if refused:
                raise Fault("opt_out", f"{refused} at {target.url}")
        if into is not None and (most := into.judge(head)) is not None:
            await Body(connection.reader, head, self.policy, most, clock, sink=into.write).pour()
            into.end()
            return b""
        if into is None and head.status == 200:
            return await Body(connection.reader, head, self.policy, limit, clock, whole=file, large=self._large).read()
        await self._pass_over(head, connection)
        if head.status in REDIRECTS:
            return b""
        status = "fetch_transient" if head.status in _PASSING else "fetch_permanent"
        raise Fault(status, f"HTTP {head.status} at {target.url}", wait=_retry_after(head), http=head.status)

    async def _pass_over(self, head: Head, connection: Connection) -> None:
        """Read a small unwanted body, so that its connection can serve again; anything else closes it."""
        length = head.get("content-length") or ""
        small = length.isdigit() and int(length) <= _SMALL and not head.get("transfer-encoding")
        head.keep &= small
        if head.keep:
            try:
                async with asyncio.timeout(1.0):
                    await connection.reader.readexactly(int(length))
            except (TimeoutError, EOFError, OSError):
                head.keep = False

    async def close(self) -> None:
        """Drop all connections."""
        self._connections.close()


def _retry_after(head: Head) -> float:
    """Seconds that the server asks for, 0 when it does not; a date counts from now, and no clock of ours is written anywhere."""
    said = head.get("retry-after") or ""
    if said.isascii() and said.isdigit() and len(said) < 10:
        return float(said)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    return 0.0
