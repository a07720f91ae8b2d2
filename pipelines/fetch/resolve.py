"""From a host to the addresses that may be connected to: resolved once, every answer judged, and only what was judged is handed on.

A name with a single non-public address among its answers is refused whole: half a rebinding attack is one. The caller connects to these very
addresses and never to the name, so what was checked is what is used. Vetted answers are kept for a few minutes, which also makes a second,
different answer of a rebinding server come too late.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from pipelines.fetch.addresses import blocked
from pipelines.fetch.faults import Fault
from pipelines.fetch.urls import Target

Resolve = Callable[[str], Iterable[str]]  # host → addresses; OSError when there are none
KEEP = 300.0  # seconds that a vetted answer is used
MAX_KEPT = 50_000
THREADS = 32  # the system's resolver blocks; one that hangs must not hold up the others


def system(host: str) -> list[str]:
    """The addresses of a host as the operating system knows them, in its order of preference."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Resolver:
    """Vetted addresses of hosts. `private` are the (address, port) pairs that are allowed although they are not public."""

    def __init__(self, resolve: Resolve = system, private: frozenset[tuple[str, int]] = frozenset(), timeout: float = 10.0) -> None:
        self._resolve, self._private, self._timeout = resolve, private, timeout
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="resolve")
        self._kept: dict[tuple[str, int], tuple[float, tuple[str, ...]]] = {}

    def check_port(self, target: Target, allowed: tuple[int, ...]) -> None:
        """Raises `Fault` for a port that is neither allowed nor that of a private pair."""
        if target.port not in allowed and not any(port == target.port for _, port in self._private):
            raise Fault("not_allowed", f"port {target.port} of {target.host}; allowed: {', '.join(map(str, allowed))}")

    async def addresses(self, target: Target) -> tuple[str, ...]:
        """What may be connected to for this target. Raises `Fault`."""
        key = (target.host, target.port)
        until, known = self._kept.get(key, (0.0, ()))
        if until > time.monotonic():
            return known
        answers = (target.address,) if target.address else await self._ask(target.host)
        for address in answers:
            why = None if (address, target.port) in self._private else blocked(address)
            if why:
                raise Fault("not_allowed", f"{target.host} is not public: {why}")
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        self._kept[key] = (time.monotonic() + KEEP, answers)
        return answers

    async def _ask(self, host: str) -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                answers = tuple(await loop.run_in_executor(self._pool, lambda: list(self._resolve(host))))
        except TimeoutError:
            raise Fault("timeout", f"{host}: no answer from the resolver in {self._timeout:g} s") from None
        except socket.gaierror as error:
            again = error.errno == socket.EAI_AGAIN
            raise Fault("fetch_transient" if again else "fetch_permanent", f"{host}: {error.strerror or error}") from None
        except (OSError, UnicodeError) as error:
            raise Fault("fetch_transient", f"{host}: the resolver failed: {error}") from None
        if not answers:
            raise Fault("fetch_permanent", f"{host} has no address")
        return answers

    def close(self) -> None:
        """Stop taking questions; what still hangs in the system's resolver is left to end by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)
