"""Decoding children that die in every way, by the thousand: `python -m tests.crash_soak [n]`; a short form runs with the tests.

What comes in: how many. What goes out: counts by way of dying and reason, the time a lost child costs, and what is left over: processes and
descriptors, which must be none.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from pipelines.format.errors import Reject
from pipelines.media import child, video
from pipelines.media.child import close_children, guarded
from tests.pipelines.clips import clip

WAYS = """
import ctypes, os, re, signal, time

def segfault(args, file): ctypes.string_at(0); yield
def abort(args, file): os.abort(); yield
def leave(args, file): os._exit(0); yield
def exit(args, file): raise SystemExit(3); yield
def bug(args, file): raise KeyError("field"); yield
def eat(args, file): bytearray(1 << 36); yield
def grow(args, file):
    held = []
    while True: held.append(b"x" * (64 << 20))
    yield
def half(args, file): os.write(_socket(), b"\\0\\0\\0\\x40{"); os._exit(0); yield
def nonsense(args, file): os.write(_socket(), b"\\xff" * 64); time.sleep(600); yield
def stop(args, file): os.kill(os.getpid(), signal.SIGSTOP); yield
def sleep(args, file): time.sleep(600); yield
def spin(args, file): re.match(r"(a+)+$", "a" * 64 + "b"); yield

def _socket():
    return next(int(f) for f in os.listdir("/proc/self/fd") if "socket" in os.readlink(f"/proc/self/fd/{f}"))
"""
QUICK = ("segfault", "abort", "leave", "exit", "bug", "eat", "grow", "half", "nonsense")
SLOW = ("stop", "sleep", "spin")  # cost their deadline


def left_over() -> tuple[int, int]:
    """Children of this process, dead ones that nobody waited for included, and open descriptors."""
    mine = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            mine += int(stat.read_text().rsplit(")", 1)[1].split()[1]) == os.getpid()
        except OSError:
            continue
    return mine, len(os.listdir("/proc/self/fd"))


def soak(n: int, seed: int = 1) -> Counter[str]:
    """Ends of `n` calls as "way: reason"; every twentieth is a slow way, every fifth a real decode that is killed from outside."""
    folder = tempfile.mkdtemp()
    (Path(folder) / "ways_to_die.py").write_text(WAYS)
    sys.path.insert(0, folder)
    draw, out, film = random.Random(seed), Counter[str](), clip(150)
    whole = len(list(video.stills(film, fps=30.0, size=32)))
    for i in range(n):
        if i % 5 == 4:
            out[_killed(film, draw.uniform(0, 0.25), whole)] += 1
            continue
        way = SLOW[i // 20 % len(SLOW)] if i % 20 == 0 else QUICK[i % len(QUICK)]
        try:
            list(guarded(f"ways_to_die:{way}", {}, b"x", wall_s=1.0 if way in ("stop", "sleep") else 60.0, cpu_s=1 if way == "spin" else 20))
            out[f"{way}: no end"] += 1
        except Reject as e:
            out[f"{way}: {e.reason}"] += 1
    sys.path.remove(folder)
    return out


def _killed(film: bytes, after: float, whole: int) -> str:
    """A real decode whose child is killed after so many seconds; either it was done by then or it says that it was lost."""
    got = 0
    if not child._idle:
        video.probe(film)
    pid = child._idle[-1].pid
    timer = threading.Timer(after, lambda: os.kill(pid, signal.SIGKILL))
    timer.start()
    try:
        for _ in video.stills(film, fps=30.0, size=32):
            got += 1
        assert got == whole, "frames lost without a word"
        return "killed: done before"
    except Reject as e:
        return f"killed: {e.reason}"
    finally:
        timer.cancel()
        timer.join()


def main() -> int:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    close_children()
    before = left_over()
    start = time.monotonic()
    out = soak(n)
    took = time.monotonic() - start
    close_children()
    for name, count in sorted(out.items()):
        print(f"{count:6} {name}")
    print(
        f"{sum(out.values())} of {n} calls came back, {took / n * 1000:.0f} ms each; processes and descriptors before {before}, after {left_over()}"
    )
    return 0 if sum(out.values()) == n and left_over() == before and not any("no end" in name for name in out) else 1


if __name__ == "__main__":
    raise SystemExit(main())
