"""Manners towards one host: how many requests at once, when it asked for rest, and when to leave it alone.

Limits hold in one worker. The wait for a turn is nobody's fault: it counts towards no deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pipelines.fetch.faults import Fault
from pipelines.fetch.policy import Policy


class Host:
    """One host of a part."""

    def __init__(self, name: str, policy: Policy) -> None:
        self._name, self._policy = name, policy
        self._slots = asyncio.Semaphore(policy.per_host)
        self._rests_until = 0.0
        self._failed = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold one of its connections, once it is not resting."""
        async with self._slots:
            loop = asyncio.get_running_loop()
            while (wait := self._rests_until - loop.time()) > 0:
                await asyncio.sleep(wait)
            yield

    def rest(self, seconds: float) -> None:
        """It said Retry-After: nobody asks it for that long, `max_wait` at most."""
        if seconds > 0:
            self._rests_until = max(self._rests_until, asyncio.get_running_loop().time() + min(seconds, self._policy.max_wait))

    def refuse_if_failing(self) -> None:
        """A host whose last URLs all failed in passing ways costs no further request; a later retry finds it again."""
        if self._failed >= self._policy.host_failures:
            raise Fault("fetch_transient", f"{self._name}: left alone after {self._failed} failures in a row")

    def ended(self, fault: Fault | None) -> None:
        """How a URL of this host ended: anything but a passing fault shows that the host works."""
        self._failed = self._failed + 1 if fault is not None and fault.again else 0


class Hosts:
    """All hosts met, by name."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._known: dict[str, Host] = {}

    def of(self, name: str) -> Host:
        """The one of this name."""
        if name not in self._known:
            self._known[name] = Host(name, self._policy)
        return self._known[name]
