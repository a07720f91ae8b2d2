"""Saving while training goes on: the loop waits for a copy into host memory, and a thread writes that copy.

In: the state of a step. Out: a checkpoint, some time later; what became of it is told by the loop's own thread. One save is under way at a time,
so a store that is slower than the rhythm slows the run instead of filling its memory. The host buffers are used by all saves. They are pinned on
CUDA, where copies then go at the bus's speed, and made by a thread of their own during the second step, since pinning takes far longer than copying.

A save that fails is told and the run goes on; FAILURES in a row end it, since a run that cannot be resumed should not look healthy. All ranks
learn of a failure at the same step (at `save` and `wait`), because one that stopped alone would leave the others waiting for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from pipelines.format.errors import StorageError
from trainer import checkpoint
from trainer.parallel import World

Log = Callable[..., Any]
FAILURES = 3  # in a row


class Saver:
    """Writes the checkpoints of one run. `say` is called with what happened, in the caller's thread."""

    def __init__(self, root: str, where: World, keep: int, say: Log) -> None:
        self.root, self.where, self.keep, self.say = root, where, keep, say
        self.failed = 0
        self._thread: threading.Thread | None = None
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._error: str | None = None
        self._buffers: dict[str, torch.Tensor] = {}

    def prepare(self, state: dict[str, Any]) -> None:
        """Make the host buffers for such a state while training goes on."""
        self._thread = threading.Thread(target=self._staged, args=(state, "", False), name="buffers of checkpoints")
        self._thread.start()

    def save(self, step: int, state: dict[str, Any], facts: dict[str, Any]) -> float:
        """Begin to write a checkpoint of `step` steps done; the seconds this took. Collective. First waits for the save before it; StorageError
        when that was the last of too many failures."""
        begun = time.monotonic()
        self.wait()
        copy = self._staged(state, "")
        if self.where.device.type == "cuda":
            torch.cuda.synchronize(self.where.device)
        blocked = time.monotonic() - begun
        self._thread = threading.Thread(target=self._write, args=(step, copy, facts, blocked), name=f"checkpoint {step}")
        self._thread.start()
        return blocked

    def look(self) -> None:
        """Tell what has happened since. Not collective."""
        while self._events:
            event, fields = self._events.pop(0)
            self.say(event, **fields)

    def wait(self, must: bool = False) -> None:
        """Until no save is under way. StorageError when it failed and `must` it stand, or too many did in a row. Collective."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        self.look()
        self.failed = self.failed + 1 if self._error is not None else 0
        if self._error is not None and (must or self.failed >= FAILURES):
            what = "the checkpoint could not be written" if must else f"{self.failed} checkpoints in a row could not be written"
            next = "make room there; the same command goes on from the newest complete one"
            raise StorageError(what, where=self.root, found=self._error, next=next)

    def close(self) -> None:
        """Wait for the save under way, and tell what became of it; raises nothing: there may be a greater trouble already."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.look()

    def _write(self, step: int, state: dict[str, Any], facts: dict[str, Any], blocked: float) -> None:
        begun = time.monotonic()
        try:
            path = checkpoint.write(self.root, step, state, self.where, facts)
        except checkpoint.FAILURES as e:
            self._error = checkpoint.reason(e)
            self._events.append(("checkpoint failed", {"step": step, "why": self._error}))
            return
        self._error = None
        took = {"blocked_s": round(blocked, 3), "written_s": round(time.monotonic() - begun, 3)}
        self._events.append(("checkpoint", {"step": step, "path": path, **took}))
        if self.where.rank == 0:
            try:
                checkpoint.prune(self.root, self.keep)
            except Exception as e:  # an old checkpoint too many is told, and harms nothing
                self._events.append(("old checkpoints were not removed", {"why": checkpoint.reason(e)}))

    def _staged(self, value: Any, place: str, copy: bool = True) -> Any:
        """A copy of nested state on the host, in buffers that the next save uses again. On CUDA the caller waits for the copies."""
        if isinstance(value, dict):
            return {k: self._staged(v, f"{place}/{k}", copy) for k, v in value.items()}
        if isinstance(value, list):
            return [self._staged(v, f"{place}/{i}", copy) for i, v in enumerate(value)]
        if not isinstance(value, torch.Tensor):
            return value
        local = value.to_local() if isinstance(value, DTensor) else value
        buffer = self._buffers.get(place)
        if buffer is None:
            buffer = self._buffers[place] = torch.zeros(local.shape, dtype=local.dtype, pin_memory=local.device.type == "cuda")
        if copy:
            buffer.copy_(local.detach(), non_blocking=True)
        # The piece keeps its place in the whole; from_local would send it back to the mesh's device.
        return DTensor(buffer, value._spec, requires_grad=False) if isinstance(value, DTensor) else buffer
