"""What the next steps will read, brought into the cache before they do. Nothing is guessed: upcoming records follow from plan and step.

A plan goes through a shard by blocks of 4 MB and more, 16 blocks shuffled together, so the records of one block are spread over many steps. Hence
two distances: **far**, about 512 MB of payload, up to which records are only noted, by shard; and **near**, a few steps. When a shard's first
noted record comes near, all that is noted of this shard is fetched, which is its block: as few ranged reads as the order allows, each as long as
possible. All ranks of a node note the same records and share one cache, so what one has fetched the others find.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from mixtures.plan import Plan
from mixtures.plan_file import ROWS_PER_FILE, row_path
from trainer.remote import Remote, segments_of
from trainer.shard import Shard
from trainer.two_encoders import other

FAR_BYTES, FAR_SEQUENCES = 512 << 20, 1 << 16
Rows = dict[tuple[int, int], np.ndarray]  # by (dataset, shard): rows of its index


def rows_of(plan: Plan, split: str, sequences: range | list[int]) -> Rows:
    """Which records some sequences hold."""
    parts = []
    others = np.array([-1 if (n := other(plan, i)) is None else n for i in range(len(plan.sources))])
    two = bool((others >= 0).any())
    for seq in sequences:
        file = plan.file(row_path(plan.path, split, seq))
        some = slice(int(file.start[seq % ROWS_PER_FILE]), int(file.start[seq % ROWS_PER_FILE + 1]))
        found = np.stack([np.asarray(file.spans[name][some], np.int64) for name in ("dataset", "shard", "row")])
        parts.append(found)
        if two:  # of a source with two datasets the same places of the other are read too
            there = others[file.spans["source"][some]]
            parts.append(np.concatenate([there[None], found[1:]])[:, there >= 0])
    if not parts:
        return {}
    dataset, shard, row = np.concatenate(parts, axis=1)
    number = dataset << 32 | shard
    order = np.argsort(number, kind="stable")
    number, row = number[order], row[order]
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    return {(int(n >> 32), int(n & 0xFFFFFFFF)): np.unique(r) for n, r in zip(number[starts], np.split(row, starts[1:]), strict=True)}


class Horizon:
    """Fetches early for one stream. `numbers(step)` are the sequences of a step that this node reads, `near` the steps fetched ahead."""

    def __init__(
        self, plan: Plan, split: str, shard: Callable[[int, int], Shard], remote: Remote, numbers: Callable[[int], list[int]], steps: int, near: int
    ) -> None:
        self._plan, self._split, self._shard, self._remote = plan, split, shard, remote
        self._numbers, self._steps, self._near = numbers, steps, near
        self._far = min(FAR_BYTES, remote.cache.limit // 4)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="horizon")  # opening a shard takes a round trip or two; a step should not wait
        self._looking: Future[None] | None = None
        self._sent: dict[tuple[int, int], Future[None]] = {}  # fetches under way, the newest of each shard
        self._restart(0)

    def _restart(self, step: int) -> None:
        self._at = self._known = step
        self._noted: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = {}
        self._sizes: deque[tuple[int, int]] = deque()  # (step, bytes) of steps noted and not yet reached

    def reach(self, step: int, sequences: list[int]) -> None:
        """Have what these sequences of a step need in the cache, and what follows them under way."""
        if not self._at <= step < self._known:  # the first step, or a jump
            self._settle()
            self._restart(step)
            self._look(step)
        elif self._looking is None or self._looking.done():
            self._looking = self._thread.submit(self._look, step)  # what fails there fails again, aloud, when it is read
        mine = rows_of(self._plan, self._split, sequences)
        wait([self._sent.pop(place) for place in list(mine) if place in self._sent])  # else its beginning would be fetched twice
        wanted = [(self._shard(*place), rows) for place, rows in mine.items()]
        self._remote.bring_all([(shard, rows) for shard, rows in wanted if not shard.local])

    def close(self) -> None:
        """Look no further."""
        self._settle()
        self._thread.shutdown()
        self._sent.clear()  # those that wait will be cancelled
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="horizon")

    def _settle(self) -> None:
        if self._looking is not None:
            wait([self._looking])
            self._looking = None

    def _look(self, step: int) -> None:
        """Note what has come into sight from a step, and fetch what has come near."""
        self._at = step
        while self._sizes and self._sizes[0][0] < step:
            self._sizes.popleft()
        self._note()
        for place in [p for p, noted in self._noted.items() if noted[0][0] <= step + self._near]:
            rows = np.unique(np.concatenate([rows for _, rows in self._noted.pop(place)]))
            self._sent[place] = self._remote.soon(self._shard(*place), rows)

    def _note(self) -> None:
        """Look further, until enough is known."""
        held = sum(size for _, size in self._sizes)
        while self._known < self._steps and (held < self._far or self._known <= self._at + self._near):
            numbers, size = self._numbers(self._known), 0
            if (self._known - self._at) * len(numbers) > FAR_SEQUENCES and self._known > self._at + self._near:
                break
            for place, rows in rows_of(self._plan, self._split, numbers).items():
                shard = self._shard(*place)
                if not shard.local:
                    self._noted.setdefault(place, []).append((self._known, rows))
                    size += int(shard.nbytes[segments_of(shard, rows)].sum())
            self._sizes.append((self._known, size))
            held += size
            self._known += 1
