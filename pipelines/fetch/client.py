"""One URL to one outcome: vetted, fetched, retried where that can help, and told by the contract's word.

    url ─▶ parse ─▶ robots.txt ─▶ [ vet address ▶ connect ▶ GET ▶ head ▶ opt-out? ▶ redirect? ▶ body ] ─▶ hash ─▶ Fetched
                                     ╰─ each redirect starts over at parse; a passing fault starts over here after a jittered wait

Nothing is raised for what a server does: the outcome's `status` is `ok`, `opt_out`, `fetch_permanent`, `fetch_transient`, `too_large`, `not_allowed`,
`timeout` or `hash_mismatch`. A lasting fault costs one request. Waits are drawn from the URL's own hash ("full jitter": uniform below an
exponentially growing bound), or are what Retry-After asks; then the whole host rests. `download` goes the same way with a body that goes to a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar

from pipelines.fetch import opt_out, robots
from pipelines.fetch.digests import agrees
from pipelines.fetch.download import Download
from pipelines.fetch.exchange import REDIRECTS, Exchange
from pipelines.fetch.faults import Fault
from pipelines.fetch.hosts import Hosts
from pipelines.fetch.policy import Policy
from pipelines.fetch.resolve import Resolver
from pipelines.fetch.urls import Target, parse_url, redact
from pipelines.fetch.wire import Head
from pipelines.format.chance import draw, group_hash, uniform
from pipelines.format.errors import Reject

T = TypeVar("T")
Get = Callable[[Target, Callable[[int], None], float], Awaitable[tuple[Head, bytes, float]]]  # target, count of requests, seconds


@dataclass(frozen=True)
class Ask:
    """What to fetch. `digest` is what its bytes must hash to: md5, sha256 or sha512 in hex."""

    url: str
    digest: str | None = None


@dataclass(frozen=True)
class Fetched:
    """What became of a URL. `evidence` (for a record's fields or a reject) names no clock and no address and holds no secret."""

    status: str
    detail: str = ""
    body: bytes = field(default=b"", repr=False)
    evidence: dict[str, Any] = field(default_factory=dict)
    requests: int = 0


@dataclass
class _Trip:
    """What one URL may still cost, in seconds of trying and of its own waits, and what it has cost. `h` is what its waits are drawn from.
    `renewed` says that the last attempt, though it failed, brought so much that the next one is as good as a first."""

    h: int
    left: float
    requests: int = 0
    renewed: Callable[[], bool] = lambda: False

    def sent(self, n: int) -> None:
        self.requests += n


class Client:
    """Fetches URLs on the running event loop. Hosts, connections and addresses are shared by all its fetches; `known` holds the rules of
    origins and may be shared with later clients of the same agent."""

    def __init__(self, policy: Policy, resolver: Resolver, known: robots.Known | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.policy, self._hosts = policy, Hosts(policy)
        self._exchange = Exchange(policy, resolver, self._hosts, tls)
        self._known = robots.Known() if known is None else known
        self._asking: dict[str, asyncio.Task[robots.Rules]] = {}

    async def fetch(self, ask: Ask) -> Fetched:
        """The outcome of one URL."""
        trip = _Trip(group_hash(ask.url), self.policy.patience)
        return await self._told(trip, partial(self._whole, ask, trip))

    async def download(self, ask: Ask, into: Download) -> Fetched:
        """The outcome of one URL whose body goes to a file. It is never held, so `body` is empty."""
        trip = _Trip(group_hash(ask.url), self.policy.patience, renewed=into.renewed)
        return await self._told(trip, partial(self._poured, ask, trip, into))

    async def _told(self, trip: _Trip, get: Callable[[], Awaitable[Fetched]]) -> Fetched:
        try:
            return replace(await get(), requests=trip.requests)
        except Reject as refused:
            return Fetched(refused.reason, redact(refused.detail), requests=trip.requests)
        except Fault as fault:
            return Fetched(fault.status, redact(fault.detail), requests=trip.requests)

    async def _whole(self, ask: Ask, trip: _Trip) -> Fetched:
        head, body, final = await self._get(parse_url(ask.url), trip, self._exchange.get)
        digest = sha256(body).hexdigest()
        found = self._found(ask, head, final, digest, not ask.digest or agrees(ask.digest, body))
        return replace(found, body=body if found.status == "ok" else b"")

    async def _poured(self, ask: Ask, trip: _Trip, into: Download) -> Fetched:
        head, _, final = await self._get(parse_url(ask.url), trip, lambda target, sent, left: self._exchange.pour(target, sent, into, left))
        found = self._found(ask, into.began or head, final, into.sha256, into.agrees)
        return replace(found, evidence={**found.evidence, "bytes": into.size})

    def _found(self, ask: Ask, head: Head, final: Target, digest: str, agreed: bool) -> Fetched:
        """What is said of a file that came whole."""
        said = {"url": final.url, **opt_out.evidence(head)}
        evidence = {key: redact(value) for key, value in said.items()} | {"http": head.status, "sha256": digest}
        evidence |= {"type": kind[:100]} if (kind := head.get("content-type")) else {}
        evidence |= {"robots": "allowed"} if self.policy.robots else {}
        if not agreed:
            return Fetched("hash_mismatch", f"sha256 {digest}, expected {(ask.digest or '')[:128]}", evidence=evidence)
        return Fetched("ok", evidence=evidence | ({"verified": True} if ask.digest else {}))

    async def _get(self, target: Target, trip: _Trip, get: Get) -> tuple[Head, bytes, Target]:
        host = self._hosts.of(target.host)
        host.refuse_if_failing()
        try:
            found = await self._tries(trip, lambda: self._follow(target, trip, get))
        except Fault as fault:
            host.ended(fault)
            raise
        host.ended(None)
        return found

    async def _tries(self, trip: _Trip, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until it works, the fault is a lasting one, or attempts or patience are used up; then the last fault is raised."""
        n = 0
        while True:
            try:
                return await attempt()
            except Fault as fault:
                bound = min(self.policy.max_wait, self.policy.backoff * 2**n)
                wait = max(fault.wait, uniform(draw(trip.h, 0, "backoff", n)) * bound)
                n += 1
                if fault.again and trip.renewed():
                    n, trip.left = 0, self.policy.patience
                if not fault.again or n >= self.policy.attempts or wait > min(trip.left, self.policy.max_wait):
                    raise
            trip.left -= wait
            await asyncio.sleep(wait)

    async def _follow(self, target: Target, trip: _Trip, get: Get) -> tuple[Head, bytes, Target]:
        """One attempt: the target and its redirects, each judged from the start, within one deadline."""
        left = min(self.policy.deadline, trip.left)
        seen = {target.url}
        for _ in range(self.policy.max_redirects + 1):
            if self.policy.robots:
                await self._respect_robots(target)
            head, body, left = await self._timed(trip, left, partial(get, target, trip.sent))
            if head.status not in REDIRECTS:
                return head, body, target
            target = redirected(target, head)
            if target.url in seen:
                raise Fault("fetch_permanent", f"redirects in a circle at {target.url}")
            seen.add(target.url)
        raise Fault("fetch_permanent", f"more than {self.policy.max_redirects} redirects")

    async def _timed(self, trip: _Trip, left: float, get: Callable[[float], Awaitable[tuple[Head, bytes, float]]]) -> tuple[Head, bytes, float]:
        """One exchange; what it took is off this attempt's time and off the URL's. A timeout has taken all there was to take."""
        began = asyncio.get_running_loop().time()
        try:
            head, body, spent = await get(left)
        except Fault as fault:
            waited = asyncio.get_running_loop().time() - began
            trip.left -= min(waited, left) if fault.again else 0.0
            raise
        trip.left -= spent
        return head, body, left - spent

    async def _respect_robots(self, target: Target) -> None:
        rules = self._known.get(target.origin)
        if rules is None:
            if target.origin not in self._asking:
                self._asking[target.origin] = asyncio.create_task(self._robots(target))
            rules = await asyncio.shield(self._asking[target.origin])
        forbidding = rules.forbidding(target.path)
        if forbidding:
            raise Fault("opt_out", f"robots.txt: {forbidding} for {target.url}")

    async def _robots(self, target: Target) -> robots.Rules:
        """The rules of an origin. Answers 4xx mean there are none; what cannot be reached forbids, and says so as the fault it is."""
        trip = _Trip(group_hash(target.origin), self.policy.patience)
        try:
            rules = await self._tries(trip, lambda: self._robots_once(replace(target, path="/robots.txt"), trip))
        except Reject as refused:
            raise Fault("not_allowed", f"robots.txt: {refused.detail}") from None
        except Fault as fault:
            if fault.http is None or fault.http == 429 or fault.http >= 500:
                raise Fault(fault.status, f"robots.txt: {fault.detail}") from None
            rules = robots.Rules()
        self._known.keep(target.origin, rules)
        return rules

    async def _robots_once(self, target: Target, trip: _Trip) -> robots.Rules:
        left = min(self.policy.deadline, trip.left)
        for _ in range(6):  # RFC 9309, 2.3.1.2: at least five redirects, also to other authorities; beyond them there are no rules
            start = partial(self._exchange.get_start, target, trip.sent, robots.MAX_BYTES)
            head, body, left = await self._timed(trip, left, start)
            if head.status not in REDIRECTS:
                return robots.parse(body, self.policy.agent)
            target = redirected(target, head)
        return robots.Rules()

    async def close(self) -> None:
        """Drop connections and what is still being asked."""
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        await self._exchange.close()


def redirected(target: Target, head: Head) -> Target:
    """Where a redirect leads. Raises `Reject` or `Fault`; from https to http is never followed."""
    location = head.get("location")
    if not location:
        raise Fault("fetch_permanent", f"HTTP {head.status} without a Location at {target.url}")
    with contextlib.suppress(UnicodeError):
        location = location.encode("latin-1").decode("utf-8")
    there = parse_url(location, target)
    if (target.scheme, there.scheme) == ("https", "http"):
        raise Reject("not_allowed", f"a redirect from https to http: {target.url} to {there.url}")
    return there
