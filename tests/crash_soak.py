"""Crashes of decoding processes, one after another: `python -m tests.crash_soak --crashes 1000`.

Each crash is one call whose child goes down in a way drawn by the seed (`crash_ops.py`), or a real decode of a video or a picture whose child is
killed at a random moment. Every call must end in good output or a `Reject` with a reason, within its deadline and two seconds; the next call must
work; and at the end there are as many processes and open files as before. Prints counts by way and outcome; exit 1 when anything was otherwise.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.format.errors import Reject
from pipelines.media import child, images, still, video
from pipelines.media.child import Kind, ask, close_children, guarded
from tests import crash_ops
from tests.pipelines.clips import clip, number

OPS = "tests.crash_ops"
SLOW = ("endless loop", "sleep", "stopped", "half an answer, then silence", "hangs up")
SMALL = Kind(memory=320 << 20)  # the two memory ways fill it
WALL_S, LOOP_S = 0.5, 12.0  # deadlines; an endless loop is ended by its processor limit, at one to two seconds of a shared processor


@dataclass
class Tally:
    """What became of the crashes: counts by (way, outcome), and whatever was not as promised."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0  # seconds over the deadline


def children() -> list[int]:
    """Processes that this one has started and that are not yet waited for."""
    found = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as f:
            found += [int(pid) for pid in f.read().split()]
    return found


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


def soak(crashes: int, seed: int) -> Tally:
    """So many crashes, in an order drawn by the seed."""
    draw, out = random.Random(seed), Tally()
    film, picture = clip(60, options={"g": "10"}), images.encode_png(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8))
    ways = [*crash_ops.WAYS, "nonsense", "endless answers", "killed in a video", "killed in a video", "killed in a picture", "killed in a picture"]
    weights = [0.15 if w in SLOW else 1.0 for w in ways]
    for i in range(crashes):
        # Every way once, then by the draw.
        way = ways[i] if i < len(ways) else draw.choices(ways, weights)[0]
        name, outcome = crash(way, i, film, picture, draw, out)
        out.outcomes[name, outcome] += 1
        data = os.urandom(8)
        if ask(f"{OPS}:echo", {}, data).blob != data:
            out.wrong.append(f"{i} {name}: the next call gave something else")
    return out


def crash(way: str, i: int, film: bytes, picture: bytes, draw: random.Random, out: Tally) -> tuple[str, str]:
    wall = LOOP_S if way in ("endless loop", "memory", "memory in C", "nonsense", "endless answers") or "killed" in way else WALL_S
    started, name = time.monotonic(), way
    try:
        if way == "killed in a video":
            outcome = _killed(film, draw, _seen)
        elif way == "killed in a picture":
            outcome = _killed(picture, draw, _shrunk)
        elif way == "nonsense":
            what = list(crash_ops.NONSENSE)[i % len(crash_ops.NONSENSE)]
            name = f"nonsense: {what}"
            outcome = f"good, {len(list(guarded(f'{OPS}:nonsense', {'what': what}, wall_s=wall)))} answers"
        elif way == "endless answers":
            outcome = f"good, {len(ask(f'{OPS}:endless', {}, wall_s=wall).blob)} bytes"
        else:
            said = list(guarded(f"{OPS}:die", {"way": way}, wall_s=wall, cpu_s=0, kind=SMALL if "memory" in way else Kind()))
            outcome = f"good, {len(said)} answers"
        if "killed" not in way:
            out.wrong.append(f"{i} {name}: {outcome}")
    except Reject as e:
        outcome = e.reason
    except Exception as e:
        outcome = f"{type(e).__name__}: {e}"
        out.wrong.append(f"{i} {name}: {outcome}")
    over = time.monotonic() - started - wall
    out.slowest = max(out.slowest, over)
    if over > 2:
        out.wrong.append(f"{i} {name}: {over:.1f} s over its deadline")
    return name, outcome


def _killed(data: bytes, draw: random.Random, decode: Any) -> str:
    """A real decode, its child killed while it loads, while it decodes, or at rest after that."""
    ask(f"{OPS}:echo", {}, b"")  # there is one now, and the next call takes it
    pid = child._idle[-1].pid
    timer = threading.Timer(draw.uniform(0, draw.choice((0.04, 0.6))), os.kill, (pid, signal.SIGKILL))
    timer.start()
    try:
        return str(decode(data))
    finally:
        timer.join()
        while any(c.pid == pid and c.alive for c in child._idle):  # killed at rest: the next call must not meet it dying
            time.sleep(0.002)


def _seen(film: bytes) -> str:
    got = video.frames_every(film, 10)
    numbers = [number(pixels) for _, pixels in got.frames]
    if numbers != list(range(0, 60, 3))[: len(numbers)] or (got.stopped is None and len(numbers) != 20):
        raise AssertionError(f"wrong frames {numbers}")
    if got.stopped is not None:
        raise got.stopped
    return "good, whole"


def _shrunk(picture: bytes) -> str:
    jpeg, shape, _ = still.resized(picture, 64, "center_crop", 90, True, images.MAX_PIXELS)
    if shape != (64, 64, 3) or not jpeg.startswith(b"\xff\xd8"):
        raise AssertionError(f"wrong picture {shape}")
    return "good, whole"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crashes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20261126)
    asked = parser.parse_args(argv)
    close_children()
    before, started = (children(), files()), time.monotonic()
    tally = soak(asked.crashes, asked.seed)
    close_children()
    after = (children(), files())
    for (way, outcome), n in sorted(tally.outcomes.items()):
        print(f"{n:6} {way}: {outcome}")
    if before != after:
        tally.wrong.append(f"processes and open files before {before}, after {after}")
    took = time.monotonic() - started
    print(f"{sum(tally.outcomes.values())} crashes in {took:.0f} s, seed {asked.seed}; left over: {len(after[0]) - len(before[0])} processes,")
    print(f"{after[1] - before[1]} open files; at most {max(0.0, tally.slowest):.2f} s over a deadline; not as promised: {len(tally.wrong)}")
    print("\n".join(tally.wrong))
    return bool(tally.wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
