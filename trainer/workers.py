"""Worker processes that make batches: the same batches in the same order, for any number of them.

    step s is made by worker s mod n; up to `depth` steps are asked for early; answers are taken in the order of the steps

A batch follows from the plan and its step alone, so nothing needs to be agreed on: a worker that dies is replaced, and its open steps are asked of
the new one. Three deaths without a batch in between end the run, since then it is not bad luck (mostly memory). A worker that says nothing for ten
minutes is taken for hung, and replaced too. Workers end with their input: they outlive neither `close` nor a parent that was killed.

Arrays lie in shared memory (trainer/slots.py) and are handed over as they lie. A slot is used again when the last array in it is gone; who keeps
many batches gets copies from the second on, so that keeping them never starves the workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.format import errors, storage
from pipelines.format.errors import HeadwaterError, InputError, TemporaryError
from trainer.slots import Slots, as_where, largest

if TYPE_CHECKING:
    from trainer.stream import Stream

DEATHS = 3  # in a row
SILENCE_SECONDS = 600.0  # longer than every retry of a store that answers at all
LEAVING_SECONDS = 5.0


class Workers:
    """The worker processes of one stream; a context that leaves none behind."""

    def __init__(self, stream: Stream) -> None:
        plan, count = stream.reader.plan, stream.reading.workers
        if any(storage.protocol(d.path) == "memory" for d in plan.datasets) or storage.protocol(plan.path) == "memory":
            raise InputError("memory:// exists in one process only", where=plan.path, allowed="workers: 0")
        self._steps, self._depth = stream.steps, max(stream.reading.depth, count)
        self._asked = stream.start
        rows = -(-stream.size // stream.world)
        each = -(-self._depth // count) + 1  # one may be in the trainer's hands
        pictures = stream.reader.pictures
        size = largest(rows, plan.sequence_length, stream.reader.width if pictures is None else 0)
        size += 0 if pictures is None else pictures.largest(rows * plan.sequence_length)
        said = {
            "plan": storage.absolute(plan.path), "batch": stream.size, "rank": stream.rank, "world": stream.world, "split": stream.split,
            "steps": stream.steps, "reading": stream.reading._asdict(), "size": size, "count": each,
        }  # fmt: skip
        self._workers = [_Worker(said, size, each) for _ in range(count)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of those that have been started."""
        return [w.process.pid for w in self._workers if w.process is not None]

    def take(self, step: int) -> tuple[dict[str, np.ndarray], int]:
        """(arrays, spans left out) of a step; steps are taken in order. Raises what the worker met, or TemporaryError when workers keep dying."""
        while self._asked < min(step + self._depth, self._steps):
            self._workers[self._asked % len(self._workers)].ask(self._asked)
            self._asked += 1
        return self._workers[step % len(self._workers)].answer(step)

    def close(self) -> None:
        """End them all."""
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.close()


class _Worker:
    """One process with its slots. It is started with the first question, and again when it has died."""

    def __init__(self, said: dict[str, Any], size: int, count: int) -> None:
        self._said, self._slots = said, Slots(size, count)
        self._free = list(range(count))
        self._waiting: list[int] = []  # steps without a slot yet
        self._open: dict[int, int] = {}  # step: slot, in the order asked
        self._deaths = 0
        self._text = b""
        self._held: set[int] = set()  # slots in the trainer's hands; a set, since arrays go in any thread
        self.process: subprocess.Popen[bytes] | None = None
        self._answers = -1

    def ask(self, step: int) -> None:
        """Have a step made, as soon as there is a slot."""
        self._waiting.append(step)
        self._send()

    def answer(self, step: int) -> tuple[dict[str, np.ndarray], int]:
        """Wait for the oldest open step."""
        while True:
            self._send()
            found = self._line()
            if found is None:
                self._replace(step)
                continue
            self._deaths = 0
            slot = self._open.pop(step)
            assert found["step"] == step, f"asked for step {step}, answered {found['step']}"
            if "error" in found:
                self._free.append(slot)
                raise _raised(found["error"])
            arrays, whole = self._slots.read(slot, as_where(found["where"]))
            if self._held:  # the trainer still reads an earlier one
                arrays = {name: array.copy() for name, array in arrays.items()}
                self._free.append(slot)
            else:
                self._held.add(slot)
                weakref.finalize(whole, self._returned, slot)
            return arrays, int(found["left_out"])

    def hang_up(self) -> None:
        """Tell it that nothing more is wanted, not even what was asked for."""
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            self.process.terminate()

    def close(self) -> None:
        """End it, and let go of its memory."""
        self._end(LEAVING_SECONDS)
        self._slots.close()

    def _returned(self, slot: int) -> None:
        self._held.discard(slot)
        self._free.append(slot)

    def _send(self) -> None:
        while self._waiting and self._free:
            step, slot = self._waiting.pop(0), self._free.pop()
            self._open[step] = slot
            if self.process is None:
                self._start()  # tells it all that is open
            else:
                self._tell(step, slot)

    def _tell(self, step: int, slot: int) -> None:
        assert self.process is not None and self.process.stdin is not None
        with contextlib.suppress(OSError):  # dead: seen where its answer is awaited
            self.process.stdin.write(b"%s\n" % json.dumps([step, slot]).encode())
            self.process.stdin.flush()

    def _start(self) -> None:
        self._answers, theirs = os.pipe()
        home = str(Path(__file__).resolve().parents[1])
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trainer.worker", str(self._slots.descriptor), str(theirs)],
                stdin=subprocess.PIPE, stdout=2, pass_fds=(self._slots.descriptor, theirs), env=env,
            )  # fmt: skip
        finally:
            os.close(theirs)
        self._text = b""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(self._said).encode() + b"\n")
        for step, slot in self._open.items():
            self._tell(step, slot)

    def _line(self) -> dict[str, Any] | None:
        """The next answer; None when the process is dead, or silent for too long."""
        with selectors.DefaultSelector() as ready:
            ready.register(self._answers, selectors.EVENT_READ)
            while b"\n" not in self._text:
                if not ready.select(SILENCE_SECONDS):
                    return None
                found = os.read(self._answers, 1 << 16)
                if not found:
                    return None
                self._text += found
        line, _, self._text = self._text.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said

    def _replace(self, step: int) -> None:
        status = self._end(0.5)
        self._deaths += 1
        if self._deaths == DEATHS:
            raise TemporaryError(
                f"a worker that reads died {DEATHS} times", where=f"step {step}", found=f"signal {-status}" if status < 0 else f"exit {status}",
                next="look for the out-of-memory killer in the system's log; `workers: 0` reads in the trainer itself",
            )  # fmt: skip
        self._start()

    def _end(self, seconds: float) -> int:
        if self.process is None:
            return 0
        self.hang_up()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._answers)
        status, self.process = self.process.returncode, None
        return int(status)


def _raised(said: dict[str, Any]) -> Exception:
    kind = getattr(errors, said["class"], None)
    if isinstance(kind, type) and issubclass(kind, HeadwaterError):
        return kind(said["what"], where=said.get("where"), found=said.get("found"), allowed=said.get("allowed"), next=said.get("next"))
    return RuntimeError(f"a worker failed: {said['what']}")
