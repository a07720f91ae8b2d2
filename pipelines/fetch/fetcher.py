"""Many URLs at once for callers that know nothing of event loops: questions in, outcomes out in the same order.

One thread runs the loop; the caller's thread decodes and writes meanwhile. Outcomes wait in memory for their turn, so at most `window` URLs and
about `buffer` bytes are ahead of the one that the caller waits for: a slow URL at the head delays, and never drops, what is behind it.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import lru_cache
from types import TracebackType

from pipelines.fetch.client import Ask, Client, Fetched
from pipelines.fetch.download import Download
from pipelines.fetch.policy import Policy, private_pairs
from pipelines.fetch.resolve import Resolve, Resolver, system
from pipelines.fetch.robots import Known

BUFFER = 256 << 20
AHEAD = 16  # window, in multiples of the policy's concurrency


@lru_cache(maxsize=4)
def _known(agent: str) -> Known:
    """What this process knows of robots.txt files, for all parts it works on: a popular host is asked once a day, not once a part."""
    return Known()


class Fetcher:
    """A thread with a client. Use as a context: leaving it ends the thread and every fetch that still runs.

    `private`, `resolve` and `tls` are for tests and for mirrors inside a network; no recipe reaches them."""

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        private: frozenset[tuple[str, int]] | None = None,
        resolve: Resolve = system,
        tls: ssl.SSLContext | None = None,
        known: Known | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self._resolver = Resolver(resolve, private_pairs() if private is None else private, self.policy.connect)
        self._known = known or _known(self.policy.agent)
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)

    def __enter__(self) -> Fetcher:
        self._thread.start()
        self._client = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    async def _start(self) -> Client:
        return Client(self.policy, self._resolver, self._known, self._tls)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._resolver.close()

    async def _end(self) -> None:
        mine = asyncio.current_task()
        running = [t for t in asyncio.all_tasks() if t is not mine]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._client.close()
        await asyncio.sleep(0)  # aborted transports say goodbye to their protocols

    def fetch(self, url: str, digest: str | None = None) -> Fetched:
        """One URL."""
        return asyncio.run_coroutine_threadsafe(self._client.fetch(Ask(url, digest)), self._loop).result()

    def download(self, ask: Ask, into: Download) -> Fetched:
        """One URL whose body goes to a file as it comes; the outcome holds none of it."""
        return asyncio.run_coroutine_threadsafe(self._client.download(ask, into), self._loop).result()

    def ordered(self, asks: Sequence[Ask], window: int | None = None, buffer: int = BUFFER) -> Iterator[Fetched]:
        """The outcomes of all questions, in their order."""
        answers: list[Future[Fetched] | None] = [Future() for _ in asks]
        run = _Run(self._client, asks, answers, window or AHEAD * self.policy.concurrency, buffer)
        feeding = asyncio.run_coroutine_threadsafe(run.feed(), self._loop)
        try:
            for i, answer in enumerate(answers):
                assert answer is not None
                found = answer.result()
                answers[i] = None
                self._loop.call_soon_threadsafe(run.taken, len(found.body))
                yield found
                del found, answer
        finally:
            feeding.cancel()


class _Run:
    """Feeds questions to the client as room allows. Lives on the loop's thread."""

    def __init__(self, client: Client, asks: Sequence[Ask], answers: Sequence[Future[Fetched] | None], window: int, buffer: int) -> None:
        self._client, self._asks, self._answers = client, asks, answers
        self._window, self._buffer = window, buffer
        self._out = self._held = 0  # URLs asked and not yet taken; bytes of answers not yet taken
        self._room: asyncio.Event | None = None

    async def feed(self) -> None:
        self._room = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()
        try:
            for ask, answer in zip(self._asks, self._answers, strict=True):
                while self._out >= self._window or self._held >= self._buffer:
                    self._room.clear()
                    await self._room.wait()
                assert answer is not None
                self._out += 1
                task = asyncio.create_task(self._one(ask, answer))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            while tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, ask: Ask, answer: Future[Fetched]) -> None:
        try:
            found = await self._client.fetch(ask)
        except Exception as error:  # a bug of ours: the caller meets it where it waits for this URL
            answer.set_exception(error)
            return
        self._held += len(found.body)
        answer.set_result(found)

    def taken(self, nbytes: int) -> None:
        """The caller has taken one answer."""
        self._out -= 1
        self._held -= nbytes
        if self._room:
            self._room.set()
