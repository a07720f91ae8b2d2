"""An image encoder for tests of the job around it: pixels whose worker tells where it runs, and dies, or finds no memory, as it is told."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from encode.encoder import Machine, Network
from encode.encoders.pixels import Pixels


class Mortal(Pixels):
    """`marks`: a folder where workers leave a file each (its text: the GPUs it sees), and one for every death. The first `deaths` batches anywhere
    kill their worker as the kernel would. Batches of more than `room` pictures, if that is not 0, do not fit in memory."""

    marks: str
    deaths: int = 0
    room: int = 0
    slow: float = 0.0  # seconds a batch
    kind: str = "any"

    def machine(self, device: str | None = None) -> Machine:
        return Machine("cpu", "f32", self.kind)

    def network(self, machine: Machine) -> Network:
        inner = super().network(machine)

        def run(pictures: np.ndarray):
            Path(self.marks, f"worker-{os.getpid()}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
            if self.room and len(pictures) > self.room:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            for k in range(self.deaths):
                try:
                    os.close(os.open(os.path.join(self.marks, f"death-{k}"), os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.slow)
            return inner(pictures)

        return run


class Deadly:
    """A step that is killed by one item, each time."""

    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, item: int) -> int:
        if item == self.by:
            os.kill(os.getpid(), signal.SIGKILL)
        return item


def workers(marks: Path) -> dict[str, str]:
    """Workers that computed, and the GPUs each of them saw."""
    return {p.name: p.read_text() for p in marks.glob("worker-*")}
