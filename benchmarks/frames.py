"""One frame a second out of films, as RGB arrays: ours against PyAV, decord and torchcodec, each asked by its best documented call.

    python -m benchmarks.frames --json [10s 480p …]

Films of 10, 60 and 600 s at 480p and 1080p, h264 with B-frames, a key frame every 2 s or every 10 s (`video_clips.py`). All sides decode on
one thread, from a file in the page cache, and the numbers in their frames must be equal. The peer of a row is the best of four ways, as
measured once before:

    seek        PyAV: for each time, seek to the key frame before it and decode up to it
    decode      PyAV: decode everything, convert what is wanted
    decord      get_batch of the frame numbers, 32 at a time (600 frames of 1080p would take 3.7 GB)
    torchcodec  get_frames_played_at, 32 at a time, exact mode; where it loads

`frames.*` is our decoding in process, survey of the packets included; `frames.child.*` the same through the guarded process, as users get it,
every array crossing a socket; `frames.all.*` ours in process against decoding every frame.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks.alternating import alternate, compared
from benchmarks.video_clips import FPS, LOOP_S, film, number

CASES = [(size, seconds, group_s) for seconds in (10, 60, 600) for size in ("480p", "1080p") for group_s in (2, 10)]
RUNS = {10: 7, 60: 3, 600: 1}
BAR, BAR_ALL = 1.0, 1.5
BATCH = 32


def ours(path: Path, seconds: int) -> list[int]:
    """In this process."""
    from pipelines.media.frames import sample
    from pipelines.media.video import Limits, _args

    with path.open("rb") as f:
        answers = sample({**_args(f, Limits()), "fps": 1.0}, f)
        next(answers)
        return [number(pixels) for _, pixels in answers]


def child(path: Path, seconds: int) -> list[int]:
    """Through the guarded process, one array at a time."""
    from pipelines.media.backends import BACKENDS
    from pipelines.media.child import guarded
    from pipelines.media.video import Limits, _args

    with path.open("rb") as f:
        answers = guarded(BACKENDS["pyav"].op, {**_args(f, Limits()), "fps": 1.0}, f)
        next(answers)
        return [number(np.frombuffer(a.blob, np.uint8).reshape(a.meta["shape"])) for a in answers]


def _stream(box: Any) -> Any:
    stream = box.streams.video[0]
    stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
    return stream


def seek(path: Path, seconds: int) -> list[int]:
    """PyAV, time by time."""
    out = []
    with av.open(str(path)) as box:
        stream = _stream(box)
        for t in range(seconds):
            box.seek(round(t / stream.time_base), stream=stream)
            frame = next(f for f in box.decode(stream) if f.time > t - 0.5 / FPS)
            out.append(number(frame.to_ndarray(format="rgb24")))
    return out


def decode(path: Path, seconds: int) -> list[int]:
    """PyAV, everything."""
    with av.open(str(path)) as box:
        return [number(f.to_ndarray(format="rgb24")) for i, f in enumerate(box.decode(_stream(box))) if i % FPS == 0]


def decord(path: Path, seconds: int) -> list[int]:
    """By frame number."""
    from decord import VideoReader

    reader, wanted = VideoReader(str(path), num_threads=1), list(range(0, seconds * FPS, FPS))
    return [number(a) for at in range(0, seconds, BATCH) for a in reader.get_batch(wanted[at : at + BATCH]).asnumpy()]


def torchcodec(path: Path, seconds: int) -> list[int]:
    """By time."""
    from torchcodec.decoders import VideoDecoder

    reader = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    batches = (reader.get_frames_played_at([t + 1e-6 for t in range(at, min(seconds, at + BATCH))]) for at in range(0, seconds, BATCH))
    return [number(a) for batch in batches for a in batch.data.numpy()]


PEERS: dict[str, Callable[[Path, int], list[int]]] = {"seek": seek, "decode": decode, "decord": decord, "torchcodec": torchcodec}


def _loads(name: str) -> bool:
    try:
        __import__({"decord": "decord", "torchcodec": "torchcodec.decoders"}.get(name, "av"))
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def cpu_s() -> float:
    """Processor time of this process and of its guarded children that live."""
    from pipelines.media.child import _idle

    ticks = [Path(f"/proc/{c.pid}/stat").read_text().rpartition(")")[2].split()[11:13] for c in _idle]
    return time.process_time() + sum(int(a) + int(b) for a, b in ticks) / os.sysconf("SC_CLK_TCK")


def _checked(side: Callable[[Path, int], list[int]], path: Path, seconds: int, run: int = 0) -> None:
    found = side(path, seconds)
    assert found == [t * FPS % (LOOP_S * FPS) for t in range(seconds)], f"{side.__name__} showed {found}"


def _best(path: Path, seconds: int, before: dict[str, float]) -> tuple[str, dict[str, float]]:
    """The fastest peer by processor time, and what each took; those that took twice as long as the best `before` are not asked again."""
    took = {}
    for name in filter(_loads, PEERS):
        if before and before[name] > 2 * min(before.values()):
            continue
        began = cpu_s()
        _checked(PEERS[name], path, seconds)
        took[name] = round(cpu_s() - began, 3)
    return min(took, key=lambda name: took[name]), took


def rows(folder: Path, only: list[str]) -> Iterator[dict[str, Any]]:
    """A row per film and comparison."""
    best: dict[tuple[str, int], tuple[str, dict[str, float]]] = {}
    for name in filter(_loads, PEERS):  # libraries are loaded before any clock runs
        _checked(PEERS[name], film(folder / "480p-10-2.mp4", "480p", 10, 2), 10)
    for size, seconds, group_s in CASES:
        if not all(word in (size, f"{seconds}s", f"gop{group_s}") for word in only):
            continue
        path = film(folder / f"{size}-{seconds}-{group_s}.mp4", size, seconds, group_s)
        if seconds < 600 or (size, group_s) not in best:  # long films: who was best on 60 s of the same
            best[size, group_s] = _best(path, seconds, best.get((size, group_s), ("", {}))[1])
        name, took = best[size, group_s]
        label = f"{size}.gop{group_s}.{seconds}s"
        runs, warm = RUNS[seconds], seconds < 600
        sides = [("frames", ours, PEERS[name], BAR), ("frames.child", child, PEERS[name], BAR)]
        sides += [("frames.all", ours, decode, BAR_ALL)] if group_s == 2 else []
        for kind, mine, theirs, bar in sides:
            pairs = alternate(partial(_checked, mine, path, seconds), partial(_checked, theirs, path, seconds), runs, cpu_s, warm)
            more = {"peer_is": theirs.__name__, "peers_cpu_s": took, "bytes": path.stat().st_size, "versions": versions()}
            row = compared(f"{kind}.{label}", seconds, f"frames/s of processor time; peer: {theirs.__name__}", bar, pairs, **more)
            print(f"{row['name']}: {row['ratio']} (wall {row['wall_ratio']}) {took}", file=sys.stderr, flush=True)
            yield row


def versions() -> dict[str, str]:
    """Of what took part."""
    out = {}
    for package in ("av", "decord", "torchcodec"):
        try:
            out[package] = version(package) if _loads(package) else "does not load"
        except PackageNotFoundError:
            out[package] = "not installed"
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--films", help="a folder that keeps the films")
    parser.add_argument("only", nargs="*", help="10s, 1080p, gop2 …")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = list(rows(Path(args.films or folder), args.only))
    print(json.dumps(found) if args.json else "\n".join(f"{r['name']}: {r['ratio']}" for r in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
