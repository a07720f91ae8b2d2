"""One hostile video through one door, watched from outside: what came of it, and what else was touched.

What comes in: bytes and a door: a file by its name, its bytes, an open file, or the child asked directly with a container forced on it, so that our
own sniffing stands aside. What goes out: `frames`, or the reason of a `Reject`. The canary is a named pipe (its opening would be noticed), a file
whose words must not come back, and a server that counts connections.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.format.errors import Reject
from pipelines.media import child, video
from pipelines.media.video import Limits, frames_every
from tests.peak import most_held

DOORS = ("path", "bytes", "open file", "mov", "matroska", "avi", "mpegts")
LIMITS = Limits(max_seconds=3600, max_frames_in_file=100_000)
WALL_S = 20.0


@dataclass
class Canary:
    """A pipe nobody writes to, a file whose words must not come back, and a listener; `touched` says what was reached."""

    pipe: str
    file: str
    url: str
    touched: list[str] = field(default_factory=list)


@contextmanager
def canary(folder: Path) -> Iterator[Canary]:
    """Counts who opens the pipe for reading or connects to the listener."""
    os.mkfifo(folder / "pipe")
    (folder / "canary.mp4").write_bytes(b"canary words " * 100)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    out = Canary(str(folder / "pipe"), str(folder / "canary.mp4"), f"http://127.0.0.1:{listener.getsockname()[1]}/x.ts")
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            try:
                listener.accept()[0].close()
                out.touched.append("connection")
            except TimeoutError:
                pass
            try:
                os.close(os.open(out.pipe, os.O_WRONLY | os.O_NONBLOCK))  # succeeds only while somebody has it open for reading
                out.touched.append("pipe")
            except OSError:
                pass

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield out
    finally:
        stop.set()
        thread.join()
        listener.close()


@dataclass(frozen=True)
class Outcome:
    """What one file came to: `frames` or a reason; seconds; the most memory its child has held, in MiB; the pixels' bytes."""

    said: str
    detail: str
    seconds: float
    peak: int
    pixels: bytes


def through(door: str, data: bytes, folder: Path) -> Outcome:
    """The file through one door. Whatever is not a `Reject` is a defect and comes out as it is."""
    started = time.monotonic()
    said, detail, pixels = "frames", "", b""
    try:
        got = _by(door, data, folder)
        pixels = b"".join(array.tobytes()[: 1 << 20] for _, array in got.frames[:3])
        if got.stopped is not None:
            said, detail = got.stopped.reason, got.stopped.detail
    except Reject as e:
        said, detail = e.reason, e.detail
    return Outcome(said, detail, time.monotonic() - started, peak(), pixels)


def _by(door: str, data: bytes, folder: Path) -> video.Frames:
    if door == "bytes":
        return frames_every(data, 2, max_frames=5, limits=LIMITS)
    if door in ("path", "open file"):
        path = folder / ("clip.mp4" if door == "path" else "x")
        path.write_bytes(data)
        with open(path, "rb") as f:
            return frames_every(f, 2, max_frames=5, limits=LIMITS)
    args: dict[str, Any] = {"max_pixels": LIMITS.max_pixels, "max_seconds": LIMITS.max_seconds, "max_frames_in_file": LIMITS.max_frames_in_file}
    args |= {"container": door, "fps": 2, "start": 0.0, "stop": None, "max_frames": 5}
    info = None
    frames = []
    for answer in child.guarded("pipelines.media.frames:sample", args, data, wall_s=WALL_S):
        if info is None:
            info = video.VideoInfo(**answer.meta)
        else:
            frames.append((0.0, memoryview(answer.blob)))
    assert info is not None
    return video.Frames(info, [])


def peak() -> int:
    """MiB that the idle child has held at most."""
    if not child._idle or not child._idle[-1].alive:
        return 0
    return most_held(child._idle[-1].pid) >> 20
