"""Connections that are pinned to vetted addresses, and their reuse.

A socket is opened to an address that `resolve` has judged and to no other: no name is looked up again on the way, no proxy is asked, and the peer is
read back from the socket before a byte is sent. The name lives on in the Host header and in TLS (SNI and certificate). Idle connections are
kept per origin and handed out again only for the address they were made to; one certificate store is loaded per process, not per request
(loading it takes tens of milliseconds).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from functools import cache
from ipaddress import ip_address
from itertools import zip_longest

from pipelines.fetch.faults import Fault
from pipelines.fetch.urls import Target
from pipelines.fetch.wire import MAX_HEAD

IDLE = 15.0  # seconds; many servers close at 15 to 60
MAX_IDLE = 512  # sockets kept open without work


@cache
def certificates() -> ssl.SSLContext:
    """Certificates and host names are always verified; TLS 1.2 at least; no protocol but HTTP/1.1."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


class Connection:
    """One open stream to one address."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> None:
        self.reader, self.writer, self.address = reader, writer, address
        self.idle_since = 0.0

    def alive(self) -> bool:
        """Nothing has come and nothing has ended since the last answer; bytes that nobody asked for make it suspect."""
        return not (self.reader.at_eof() or self.writer.is_closing() or self.reader._buffer)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Drop it at once, without the farewell of TLS: a peer that does not read cannot hold us."""
        self.writer.transport.abort()


class Connections:
    """The idle ones, by origin."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._idle: dict[str, deque[Connection]] = {}
        self._count = 0

    def take(self, target: Target, addresses: tuple[str, ...]) -> Connection | None:
        """An idle connection of this origin to one of these addresses, youngest first."""
        now = asyncio.get_running_loop().time()
        waiting = self._idle.get(target.origin)
        while waiting:
            connection = waiting.pop()
            self._count -= 1
            if connection.alive() and now - connection.idle_since < IDLE and connection.address in addresses:
                return connection
            connection.close()
        self._idle.pop(target.origin, None)
        return None

    def give(self, target: Target, connection: Connection) -> None:
        """Keep a connection whose answer was read to its end."""
        connection.idle_since = asyncio.get_running_loop().time()
        if self._count >= MAX_IDLE:
            self.close()
        self._idle.setdefault(target.origin, deque()).append(connection)
        self._count += 1

    async def open(self, target: Target, addresses: tuple[str, ...], timeout: float) -> Connection:
        """A new connection to the first of these addresses that answers, four at most. Raises `Fault`."""
        fault = Fault("fetch_permanent", f"{target.host} has no address")
        for address in in_turns(addresses)[:4]:
            try:
                async with asyncio.timeout(timeout):
                    return await self._open(target, address)
            except TimeoutError:
                fault = Fault("timeout", f"{target.authority}: no connection in {timeout:g} s")
            except ssl.SSLCertVerificationError as error:
                fault = Fault("fetch_permanent", f"{target.host}: certificate: {error.verify_message}")
            except ssl.SSLError as error:
                fault = Fault("fetch_permanent", f"{target.host}: TLS: {error.reason or error}")
            except OSError as error:
                fault = Fault("fetch_transient", f"{target.authority}: {error.strerror or type(error).__name__}")
        raise fault

    async def _open(self, target: Target, address: str) -> Connection:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(sock, (address, target.port))
            peer = sock.getpeername()[0]
            assert ip_address(peer) == ip_address(address), f"connected to {peer}, vetted was {address}"
            tls = {"ssl": self._tls or certificates(), "server_hostname": target.host} if target.scheme == "https" else {}
            reader, writer = await asyncio.open_connection(sock=sock, limit=MAX_HEAD, **tls)  # type: ignore[arg-type]
        except BaseException:
            sock.close()
            raise
        return Connection(reader, writer, address)

    def close(self) -> None:
        """Drop every idle connection."""
        for waiting in self._idle.values():
            for connection in waiting:
                with contextlib.suppress(RuntimeError):
                    connection.close()
        self._idle.clear()
        self._count = 0


def in_turns(addresses: tuple[str, ...]) -> list[str]:
    """The addresses with the families in turns, the resolver's first choice first: a machine without IPv6 must not stop at four IPv6 addresses."""
    first = [a for a in addresses if (":" in a) == (":" in addresses[0])]
    other = [a for a in addresses if a not in first]
    return [a for pair in zip_longest(first, other) for a in pair if a is not None]
